//! The traces of Weir in a real Jaeger, which `make test-tracing` gets: what it
//! was sent is read back from its query API.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends where it cannot go on, and this one shows what it saw"
)]

use std::{
    env,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::time::sleep;
use weir_cli::child::{Signal, die_with_parent};
use weir_tests::{
    PATIENCE,
    clients::http,
    traces::{Span, SpanRef, Trace, assert_released_and_retried, release_and_retry},
};

/// How often Jaeger is asked.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A running Jaeger; it ends with this value.
struct Jaeger {
    process: Child,
    otlp: String,
    query: String,
}

impl Jaeger {
    async fn start() -> Self {
        let program = env::var_os("WEIR_JAEGER").map_or_else(
            || {
                PathBuf::from(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/../.runtime-jaeger/all-in-one"
                ))
            },
            PathBuf::from,
        );
        // All at once, so that they differ; and free again before Jaeger takes them.
        let free = [(); 7].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|port| port.local_addr().unwrap().to_string());
        let flags = [
            "collector.otlp.grpc.host-port",
            "query.http-server.host-port",
            "collector.otlp.http.host-port",
            "collector.grpc-server.host-port",
            "collector.http-server.host-port",
            "query.grpc-server.host-port",
            "admin.http.host-port",
        ];
        let mut command = Command::new(&program);
        let flags = flags
            .iter()
            .zip(&ports)
            .map(|(flag, port)| format!("--{flag}={port}"));
        command
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        die_with_parent(&mut command, Signal::KILL);
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("{}: {error}; run `make test-tracing`", program.display())
        });
        let mut jaeger = Self {
            process,
            otlp: format!("http://{}", ports[0]),
            query: format!("http://{}", ports[1]),
        };
        jaeger.wait_for("/api/services", |_| true).await;
        jaeger
    }

    /// Asks until the answer is as wanted.
    async fn wait_for(&mut self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let asking = async {
            loop {
                if let Ok(answer) = http().get(format!("{}{path}", self.query)).send().await
                    && let Ok(answer) = answer.json::<Value>().await
                    && wanted(&answer["data"])
                {
                    return answer["data"].clone();
                }
                let ended = self.process.try_wait().unwrap();
                assert!(ended.is_none(), "Jaeger ended: {ended:?}");
                sleep(ASK_AGAIN).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or_else(|_| panic!("Jaeger never answered {path} as it should"))
    }
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A trace, from the JSON of Jaeger's page.
fn read(trace: &Value) -> Trace {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let spans = trace["spans"].as_array().unwrap();
    let mut spans: Vec<Span> = spans
        .iter()
        .map(|span| {
            let references = span["references"].as_array().unwrap();
            let of_kind = |kind: &'static str| {
                references
                    .iter()
                    .filter(move |reference| reference["refType"] == kind)
            };
            let attributes = span["tags"].as_array().unwrap().iter().map(|tag| {
                let value = &tag["value"];
                (
                    text(&tag["key"]),
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned),
                )
            });
            let process = span["processID"].as_str().unwrap();
            let attributes: std::collections::BTreeMap<_, _> = attributes.collect();
            Span {
                id: SpanRef {
                    trace_id: text(&span["traceID"]),
                    span_id: text(&span["spanID"]),
                },
                parent: of_kind("CHILD_OF")
                    .next()
                    .map(|parent| text(&parent["spanID"])),
                links: Vec::new(),
                service: text(&trace["processes"][process]["serviceName"]),
                name: text(&span["operationName"]),
                start_us: span["startTime"].as_u64().unwrap(),
                duration_us: span["duration"].as_u64().unwrap(),
                failed: attributes.get("error").is_some_and(|error| error == "true"),
                attributes,
            }
        })
        .collect();
    spans.sort_by_key(|span| span.start_us);
    Trace(spans)
}

#[tokio::test]
async fn jaeger_shows_a_job_that_failed_and_was_retried_elsewhere_as_one_trace() {
    let mut jaeger = Jaeger::start().await;
    let trace_id = release_and_retry(&jaeger.otlp).await;
    // All were sent before; they are seen a moment later.
    let path = format!("/api/traces/{trace_id}");
    let complete = |data: &Value| data[0]["spans"].as_array().is_some_and(|it| it.len() >= 17);
    let data = jaeger.wait_for(&path, complete).await;
    assert_eq!(data.as_array().unwrap().len(), 1);
    let trace = read(&data[0]);
    println!("Trace {trace_id}, from {}:\n{trace}", jaeger.query);
    assert_released_and_retried(&trace);
    // What is wrong with a trace, such as a missing parent, Jaeger says in words. It takes what
    // begins after its parent has ended for a sign of clocks that differ, which is as it should be:
    // a job outlives the call that caused it.
    for span in data[0]["spans"].as_array().unwrap() {
        let warnings = span["warnings"].as_array().into_iter().flatten();
        let clocks = |warning: &Value| warning.as_str().is_some_and(|it| it.contains("clock skew"));
        assert!(warnings.clone().all(clocks), "{span}");
    }
    let services = jaeger
        .wait_for("/api/services", |data| data.is_array())
        .await;
    for service in ["caller", "weir-coordinator", "weir-worker"] {
        assert!(
            services.as_array().unwrap().contains(&service.into()),
            "{services}"
        );
    }
    if let Some(seconds) = env::var("WEIR_JAEGER_STAY")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        println!("Jaeger stays at {}/trace/{trace_id}", jaeger.query);
        sleep(Duration::from_secs(seconds)).await;
    }
}
