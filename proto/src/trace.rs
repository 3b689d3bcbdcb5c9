//! The trace context that calls carry and jobs keep: the header `traceparent`
//! of <https://www.w3.org/TR/trace-context/>.

use std::{fmt, num::NonZero, str::FromStr};

/// The name of the header, and of the key in gRPC metadata.
pub const TRACEPARENT: &str = "traceparent";

/// A trace, the span in it that is the parent of what follows, and whether the
/// trace is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: NonZero<u128>,
    /// The span.
    pub span_id: NonZero<u64>,
    /// Whether spans of the trace are exported: decided once, where it began.
    pub sampled: bool,
}

/// What is no trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotATraceContext;

impl fmt::Display for NotATraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not a traceparent such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
    }
}

impl std::error::Error for NotATraceContext {}

impl TraceContext {
    /// The trace's id, as logs and tracing systems write it.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// Reads a header. One that is not well-formed is none: the trace begins
    /// anew.
    pub fn read(header: &str) -> Option<Self> {
        header.parse().ok()
    }
}

/// As the header has it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            sampled,
        } = self;
        write!(
            f,
            "00-{trace_id:032x}-{span_id:016x}-{:02x}",
            u8::from(*sampled)
        )
    }
}

impl FromStr for TraceContext {
    type Err = NotATraceContext;

    fn from_str(header: &str) -> Result<Self, NotATraceContext> {
        let mut parts = header.split('-');
        let mut part = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            // The number's own parser would take a sign, and capitals.
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            part.bytes().all(hex).then_some(part)
        };
        let mut read = || {
            let version = part(2)?;
            let trace_id = NonZero::new(u128::from_str_radix(part(32)?, 16).ok()?)?;
            let span_id = NonZero::new(u64::from_str_radix(part(16)?, 16).ok()?)?;
            let flags = u8::from_str_radix(part(2)?, 16).ok()?;
            let context = Self {
                trace_id,
                span_id,
                sampled: flags & 1 == 1,
            };
            Some((version, context))
        };
        let (version, context) = read().ok_or(NotATraceContext)?;
        // Later versions may have more parts, which are passed over; ff is none.
        let ends = parts.next().is_none();
        let known = version != "ff" && (ends || version != "00");
        known.then_some(context).ok_or(NotATraceContext)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written_alike() {
        let context = TraceContext::read(HEADER).unwrap();
        assert_eq!(context.to_string(), HEADER);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(context.sampled);
        let unsampled = HEADER.replace("-01", "-00");
        assert!(!TraceContext::read(&unsampled).unwrap().sampled);
        // Only the lowest bit says so.
        assert!(
            TraceContext::read(&HEADER.replace("-01", "-03"))
                .unwrap()
                .sampled
        );
        assert!(
            !TraceContext::read(&HEADER.replace("-01", "-02"))
                .unwrap()
                .sampled
        );
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = format!("cc{}", &HEADER[2..]);
        assert_eq!(TraceContext::read(&later), TraceContext::read(HEADER));
        let longer = format!("{later}-what-comes");
        assert_eq!(TraceContext::read(&longer), TraceContext::read(HEADER));
    }

    #[test]
    fn what_is_not_well_formed_is_none() {
        for header in [
            "",
            "nonsense",
            "00-4bf9-00f0-01",
            &HEADER.to_uppercase(),
            &HEADER.replace("4bf9", "+bf9"),
            &HEADER.replace("00f0", "é0"),
            &HEADER.replace("-01", "-1"),
            &HEADER.replace("-01", ""),
            &format!("{HEADER}-more"),
            &format!("ff{}", &HEADER[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(TraceContext::read(header), None, "{header}");
        }
    }
}
