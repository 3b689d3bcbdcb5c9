//! Where spans go, and of how many traces.

use clap::Args;
use http::Uri;
use weir_proto::secret::UrlParser;

/// The settings of tracing.
#[derive(Debug, Clone, Default, Args)]
pub struct TraceConfig {
    /// Where to send traces: an OTLP receiver that speaks gRPC, as
    /// `http://host:4317` or `https://host:4317`. Not sent anywhere by default.
    #[arg(long, env = "WEIR_OTLP_ENDPOINT", value_name = "URL", hide_env_values = true, value_parser = UrlParser(endpoint))]
    pub otlp_endpoint: Option<Uri>,
    /// The share of traces that are sent, 0 to 1, of those that begin here. A
    /// caller that has a trace decides for it.
    #[arg(
        long,
        env = "WEIR_TRACE_RATIO",
        value_name = "RATIO",
        default_value = "1",
        value_parser = ratio
    )]
    pub trace_ratio: f64,
}

fn endpoint(text: &str) -> Result<Uri, String> {
    let uri: Uri = text
        .parse()
        .map_err(|error| format!("not a URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("it must start with http:// or https://".to_owned());
    }
    // Addresses are logged.
    if uri.query().is_some() || uri.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err("it must not hold a user, a password or a query".to_owned());
    }
    Ok(uri)
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&ratio) {
        Ok(ratio)
    } else {
        Err("it must be 0 to 1".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        trace: TraceConfig,
    }

    #[test]
    fn nothing_is_sent_by_default_and_all_of_it_otherwise() {
        let trace = Program::parse_from(["p"]).trace;
        assert_eq!(trace.otlp_endpoint, None);
        assert!((trace.trace_ratio - 1.0).abs() < f64::EPSILON);
        let trace = Program::parse_from(["p", "--otlp-endpoint", "http://127.0.0.1:4317"]).trace;
        assert_eq!(trace.otlp_endpoint.unwrap(), "http://127.0.0.1:4317/");
    }

    #[test]
    fn a_bad_setting_is_refused_by_name() {
        for (flag, value) in [
            ("--otlp-endpoint", "127.0.0.1:4317"),
            ("--otlp-endpoint", "ftp://host"),
            ("--otlp-endpoint", "http://host/?key=hunter2"),
            ("--otlp-endpoint", "http://user:hunter2@host:4317"),
            ("--otlp-endpoint", "https://hunter2@host"),
            ("--trace-ratio", "1.01"),
            ("--trace-ratio", "-0.1"),
            ("--trace-ratio", "NaN"),
            ("--trace-ratio", "often"),
        ] {
            let error = Program::try_parse_from(["p", &format!("{flag}={value}")]).unwrap_err();
            let error = format!("{error} {error:?}");
            assert!(error.contains(flag), "{flag}={value}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
