//! A Chromium of its own for each test, and the words for what tests do with
//! it.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use fantoccini::{
    Client, ClientBuilder,
    actions::{InputSource as _, KeyAction, KeyActions},
    elements::{Element, ElementRef},
    key::Key,
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_cli::child::{Signal, die_with_parent};
use weir_tests::{PATIENCE, clients::http};

/// What a browser is started with: it asks nobody but the page's host, and runs
/// as root, too.
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1320,1400",
];

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    let test = env::current_exe().expect("a process knows its program");
    let target = test.ancestors().nth(3);
    target
        .expect("tests are in target/<profile>/deps")
        .to_owned()
}

/// What scripts of tests call things.
const WORDS: &str = "
    const all = (selector, within = document) => [...within.querySelectorAll(selector)];
    const text = (element) => element?.textContent.trim().replace(/\\s+/g, ' ');
    const row = (part) => all('main tbody tr').find((row) => text(row).includes(part));
    const badge = (source) => text(row(source)?.querySelector('.badge'));
    const verdict = () => text(document.querySelector('.verdict strong')).toLowerCase();
    const reasons = () => all('.verdict li').map(text);
    const title = () => text(document.querySelector('#title'));
    const connection = () => text(document.querySelector('.connection'));
    const tip = () => text(document.querySelector('.tip:popover-open'));
    const notices = () => text(document.querySelector('.notices'));
    const button = (label, within = document.querySelector('dialog') ?? document) =>
        all('button', within).find((it) => (it.getAttribute('aria-label') ?? text(it)).startsWith(label) && !it.disabled);
    const link = (label, within = document) => all('a', within).find((it) => (it.getAttribute('aria-label') ?? text(it)) === label);
";

/// The program between a test and its browser.
struct Driver {
    child: Child,
    port: u16,
    session: String,
}

impl Driver {
    fn start() -> Self {
        let mut command = Command::new("chromedriver");
        command
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        die_with_parent(&mut command, Signal::KILL);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start chromedriver, run `make test-browser`: {error}")
        });
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                line.split_once("successfully on port ")?
                    .1
                    .trim_end_matches('.')
                    .parse()
                    .ok()
            })
            .expect("chromedriver says where it listens");
        // Goes on to be read, so that it never waits for that.
        thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            port,
            session: String::new(),
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Driver {
    /// Has the browser end, also when the test has failed, and then the driver.
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let (session, port) = (&self.session, self.port);
            let request = format!(
                "DELETE /session/{session} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n"
            );
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read(&mut [0; 64]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A browser with one page.
pub(crate) struct Browser {
    client: Client,
    driver: Driver,
    _profile: TempDir,
}

impl Browser {
    /// Starts one and opens a page.
    pub(crate) async fn open(url: &str) -> Self {
        Self::open_with(&[], url).await
    }

    /// The same, with more flags.
    pub(crate) async fn open_with(more: &[&str], url: &str) -> Self {
        let mut driver = Driver::start();
        let profile = TempDir::new().expect("a folder can be made");
        let data = format!("--user-data-dir={}", profile.path().display());
        let flags: Vec<&str> = [&FLAGS[..], more, &[data.as_str()]].concat();
        let wanted = json!({
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "performance": "ALL", "browser": "ALL" },
            // Certificates of tests are of an authority that nobody knows.
            "acceptInsecureCerts": true,
            "timeouts": { "script": PATIENCE.as_millis() as u64 },
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(wanted.as_object().expect("it is one").clone())
            .connect(&driver.url())
            .await
            .unwrap_or_else(|error| panic!("Chromium does not start: {error}"));
        driver.session = client.session_id().await.unwrap().unwrap();
        let browser = Self {
            client,
            driver,
            _profile: profile,
        };
        browser.goto(url).await;
        browser
    }

    /// Opens another page.
    pub(crate) async fn goto(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Opens this page anew.
    pub(crate) async fn reload(&self) {
        self.client.refresh().await.unwrap();
    }

    /// What an expression is in the page.
    pub(crate) async fn is(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}")).await
    }

    /// Runs a script in the page, and what it promises to the end.
    pub(crate) async fn run(&self, script: &str) -> Value {
        let script = format!("{WORDS}{{ {script} }}");
        let ran = self.client.execute(&script, Vec::new()).await;
        ran.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until an expression holds in the page, and returns what it is. It
    /// is looked at whenever the page changes.
    pub(crate) async fn until(&self, expression: &str) -> Value {
        let script = format!(
            "{WORDS}
            const done = arguments[arguments.length - 1];
            const look = () => {{ try {{ return {expression}; }} catch {{ return null; }} }};
            const check = () => {{
                const found = look();
                if (found) {{ observer.disconnect(); clearInterval(timer); done(found); }}
            }};
            const observer = new MutationObserver(check);
            observer.observe(document, {{ subtree: true, childList: true, characterData: true, attributes: true }});
            // What is no change of the document, such as the focus.
            const timer = setInterval(check, 100);
            check();"
        );
        match self.client.execute_async(&script, Vec::new()).await {
            Ok(found) => found,
            Err(error) => {
                let page = self.is("document.body.innerText").await;
                panic!(
                    "it never came to be: {expression}: {error}\n{}",
                    page.as_str().unwrap_or_default()
                );
            }
        }
    }

    /// The element that an expression is, as soon as there is one.
    pub(crate) async fn element(&self, expression: &str) -> Element {
        let found = self.until(expression).await;
        let id = found
            .as_object()
            .and_then(|it| it.values().next()?.as_str());
        let id = id.unwrap_or_else(|| panic!("{expression} is no element, but {found}"));
        Element::from_element_id(self.client.clone(), ElementRef::from(id.to_owned()))
    }

    /// Clicks on the element that an expression is.
    pub(crate) async fn click(&self, expression: &str) {
        let clicked = self.element(expression).await.click().await;
        clicked.unwrap_or_else(|error| panic!("{expression}: {error}"));
    }

    /// Types into the element that an expression is.
    pub(crate) async fn write(&self, expression: &str, text: &str) {
        let element = self.element(expression).await;
        element.send_keys(text).await.unwrap();
    }

    /// Presses a key.
    pub(crate) async fn press(&self, key: Key) {
        let value = char::from(key);
        let keys = KeyActions::new("keyboard".to_owned())
            .then(KeyAction::Down { value })
            .then(KeyAction::Up { value });
        self.client.perform_actions(keys).await.unwrap();
    }

    /// What the focus is on: its label or its text.
    pub(crate) async fn focus(&self) -> String {
        let focus = self
            .is("document.activeElement.getAttribute('aria-label') ?? text(document.activeElement)")
            .await;
        focus.as_str().unwrap_or_default().to_owned()
    }

    /// Tells the browser to be another: a command of its own protocol.
    /// <https://chromedevtools.github.io/devtools-protocol/>
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let request = json!({ "cmd": command, "params": parameters });
        self.post("goog/cdp/execute", request).await
    }

    /// Has this size of the page, in pixels, and the touch of a phone or not.
    pub(crate) async fn resize(&self, (width, height): (u32, u32), phone: bool) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
        self.devtools(
            "Emulation.setTouchEmulationEnabled",
            json!({ "enabled": phone }),
        )
        .await;
    }

    /// Prefers light or dark.
    pub(crate) async fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// What was logged since this was asked last: of `performance`, the messages
    /// of the browser's protocol; of `browser`, what its console says.
    pub(crate) async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.post("se/log", json!({ "type": kind })).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        if kind != "performance" {
            return entries;
        }
        let messages = entries.iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            Some(message["message"].clone())
        });
        messages.collect()
    }

    async fn post(&self, command: &str, request: Value) -> Value {
        let url = format!(
            "{}/session/{}/{command}",
            self.driver.url(),
            self.driver.session
        );
        let answer = http().post(url).json(&request).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{command}: {answer}");
        answer["value"].clone()
    }
}
