//! Docker, by its API. Its events say that something happened to a container, and the container is then looked at; so what
//! is on the page is never older than the last event. Podman speaks the same language with an accent.

mod answers;
mod work;

use super::http::{Client, HttpError, Limits, Line, Lines};
use super::{Context, SourceError};
use crate::resolve::workload::cut;
use answers::{Containers, Inspected, PodInspected, Version};
use rustc_hash::FxHashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;
use work::{Job, Work};

/// What is read at most, and how long it may take. A list of 10,000 containers has about 15 MB.
const SHORT: Limits = Limits { bytes: 64 << 10, time: Duration::from_secs(5) };
const LIST: Limits = Limits { bytes: 32 << 20, time: Duration::from_secs(30) };
const INSPECT: Limits = Limits { bytes: 2 << 20, time: Duration::from_secs(5) };
/// Longest event: it repeats the labels.
const MAX_EVENT: usize = 1 << 20;
/// So many answers that do not come in time, one after the other, and the server counts as hanging. One alone may be a
/// container that hangs.
const MAX_LATE: u32 = 3;
/// Names of podman's pods that are remembered.
const MAX_PODS: usize = 4096;
/// Events that concern no name (`exec_start` of health checks, above all) need not be sent. Podman calls some of them by
/// other names, and gets no such list.
const DOCKER_EVENTS: &str = r#"{"type":["container","network"],"event":["start","restart","rename","update","die","destroy","connect","disconnect"]}"#;
const PODMAN_EVENTS: &str = r#"{"type":["container","network"]}"#;

/// Follows Docker, or podman by its socket.
pub(super) async fn run(context: &mut Context) -> Result<Infallible, SourceError> {
    let mut api = Api::connect(context).await?;
    let mut events = api.events().await?;
    context.reporter.connected(&api.what);
    let mut work = Work::new(context.reporter.clone());
    let mut late = 0;
    loop {
        let job = loop {
            match work.next() {
                Some(job) => break job,
                None => listen(context, &mut events, &mut work).await?,
            }
        };
        let answer = {
            let mut request = pin!(api.ask(&job));
            loop {
                tokio::select! {
                    heard = listen(context, &mut events, &mut work) => heard?,
                    answer = &mut request => break answer,
                }
            }
        };
        late = if matches!(answer, Err(HttpError::Late(_))) { late + 1 } else { 0 };
        match answer {
            Err(error @ HttpError::Broken(_)) => return Err(error.into()),
            Err(error @ HttpError::Late(_)) if late == MAX_LATE => return Err(error.into()),
            answer => work.answered(&job, answer)?,
        }
    }
}

/// Waits for the next thing to happen that nobody asked for. May be given up at any time.
async fn listen(context: &mut Context, events: &mut Lines, work: &mut Work) -> Result<(), SourceError> {
    tokio::select! {
        line = events.next() => match line? {
            Line::Whole(line) => work.heard(&line),
            Line::TooLong => work.missed(&format!("an event of more than {MAX_EVENT} bytes was left out")),
        },
        Some(wanted) = context.questions.recv() => work.asked(&wanted),
        () = tokio::time::sleep_until(work.list_at()) => work.list_is_due(),
    }
    Ok(())
}

impl From<HttpError> for SourceError {
    fn from(error: HttpError) -> SourceError {
        SourceError(error.to_string())
    }
}

/// What an answer says.
enum Answer {
    /// All containers that run.
    All(Containers),
    /// This one, and the name of its pod.
    One(Box<Inspected>, Option<String>),
}

/// The server, as it wants to be spoken to.
struct Api {
    client: Client,
    /// What it is: `Docker 20.10.24`.
    what: String,
    /// What comes before the paths: podman tells of pods only in its own part of the API.
    prefix: String,
    filters: &'static str,
    /// Names of podman's pods by their ids. A pod cannot be renamed.
    pods: FxHashMap<String, String>,
}

impl Api {
    async fn connect(context: &Context) -> Result<Api, SourceError> {
        let mut client = Client::new(&context.path);
        let version: Version = client.get("/version", SHORT).await?;
        let podman = version.components.iter().find(|component| component.name == "Podman Engine");
        let (mut what, prefix, filters) = match podman {
            Some(podman) => {
                let api = podman.details.get("APIVersion").unwrap_or(&podman.version);
                let plain: String =
                    api.chars().take_while(|c| c.is_ascii_digit() || *c == '.').take(16).collect();
                (format!("podman {}", podman.version), format!("/v{plain}/libpod"), PODMAN_EVENTS)
            }
            None => (format!("Docker {}", version.version), String::new(), DOCKER_EVENTS),
        };
        cut(&mut what, 64);
        Ok(Api { client, what, prefix, filters, pods: FxHashMap::default() })
    }

    /// The stream of events from now on. Docker answers before it subscribes, so the time says from when.
    async fn events(&self) -> Result<Lines, HttpError> {
        let now = jiff::Timestamp::now();
        let since = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
        let path = format!("/events?since={since}&filters={}", escaped(self.filters));
        self.client.lines(&path, MAX_EVENT, SHORT.time).await
    }

    async fn ask(&mut self, job: &Job) -> Result<Answer, HttpError> {
        match job {
            Job::List => {
                let path = format!("{}/containers/json", self.prefix);
                Ok(Answer::All(self.client.get(&path, LIST).await?))
            }
            Job::Inspect(id) => {
                let path = format!("{}/containers/{id}/json", self.prefix);
                let inspected: Inspected = self.client.get(&path, INSPECT).await?;
                let pod = match inspected.pod.is_empty() {
                    true => None,
                    false => Some(self.pod_name(&inspected.pod).await?),
                };
                Ok(Answer::One(Box::new(inspected), pod))
            }
        }
    }

    async fn pod_name(&mut self, id: &str) -> Result<String, HttpError> {
        if let Some(name) = self.pods.get(id) {
            return Ok(name.clone());
        }
        let path = format!("{}/pods/{}/json", self.prefix, escaped(id));
        let PodInspected { mut name } = self.client.get(&path, INSPECT).await?;
        cut(&mut name, 253);
        if self.pods.len() >= MAX_PODS {
            self.pods.clear();
        }
        self.pods.insert(id.to_owned(), name.clone());
        Ok(name)
    }
}

/// A text as part of a path or query.
fn escaped(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            true => out.push(char::from(byte)),
            // Writing into a string does not fail.
            false => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests;
