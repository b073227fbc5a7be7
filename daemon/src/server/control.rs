//! The Unix socket: everything under `/v1/`. Errors are JSON with a stable word, a sentence and what to do.

use super::answer::{self, Answer, Refusal};
use super::listen;
use super::query::{Query, decode};
use crate::engine::pass::PassError;
use crate::engine::{ChangeError, Engine, EventFilter, NoSuchEntity, Peer};
use crate::events::history::{Batch, History};
use crate::filter::{self, Entities};
use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;
use netskoop_api::{EventLine, ProbePatch, Reloaded};
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Largest request body.
const MAX_BODY: usize = 64 * 1024;
/// A request body must be here by then.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Events read from the history at a time.
const BATCH: usize = 256;
/// Clients that may follow the stream at the same time.
const MAX_FOLLOWERS: usize = 64;
/// A request that waits for a change is answered after this time even without one.
const LONG_POLL: Duration = Duration::from_secs(30);

/// What there is below `/v1/`.
const PATHS: [&str; 8] =
    ["status", "probes", "entities", "events", "metrics", "config", "reload", "selftest"];

type Result<T> = std::result::Result<T, Refusal>;

/// Answers a request on the control socket.
pub async fn handle(engine: Arc<Engine>, request: Request<Incoming>, peer: Peer) -> Answer {
    route(&engine, request, peer).await.unwrap_or_else(Refusal::json)
}

async fn route(engine: &Arc<Engine>, request: Request<Incoming>, peer: Peer) -> Result<Answer> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query());
    let parts: Vec<&str> = path.trim_start_matches('/').splitn(3, '/').collect();
    let method = request.method().clone();
    match (&method, parts.as_slice()) {
        (&Method::GET, ["v1", "status"]) => Ok(answer::json(&engine.status())),
        (&Method::GET, ["v1", "probes"]) => Ok(answer::json(&engine.probe_infos())),
        (&Method::GET, ["v1", "probes", name]) => {
            Ok(answer::json(&engine.probe_info(engine.find_probe(&decode(name))?)))
        }
        (&Method::PATCH, ["v1", "probes", name]) => {
            allow_change(engine, &peer)?;
            let patch: ProbePatch = body(request).await?;
            Ok(answer::json(&engine.patch_probe(&decode(name), &patch, &peer).await?))
        }
        (&Method::GET, ["v1", "entities"]) => entities(engine, &query).await,
        (&Method::GET, ["v1", "entities", name]) => match engine.entity(&decode(name)).await {
            Ok(entity) => Ok(answer::json(&entity)),
            Err(error) => Err(no_such_entity(&error)),
        },
        (&Method::GET, ["v1", "events"]) => events(engine, &query),
        (&Method::GET, ["v1", "metrics"]) => metrics(engine, &query).await,
        (&Method::GET, ["v1", "config"]) => Ok(answer::json(&engine.config_json())),
        (&Method::GET, ["v1", "config", "diff"]) => {
            Ok(answer::json(&Reloaded { changes: engine.config_diff()? }))
        }
        (&Method::POST, ["v1", "config", "import"]) => {
            let old: serde_json::Value = body(request).await?;
            Ok(answer::json(&engine.import_config(&old)?))
        }
        (&Method::POST, ["v1", "reload"]) => {
            allow_change(engine, &peer)?;
            tracing::info!(uid = peer.uid, pid = peer.pid, "reload requested");
            Ok(answer::json(&Reloaded { changes: engine.reload().await? }))
        }
        (&Method::POST, ["v1", "selftest"]) => {
            allow_change(engine, &peer)?;
            Ok(answer::json(&engine.self_test(&peer).await?))
        }
        (_, ["v1", known, ..]) if PATHS.contains(known) => {
            Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "wrong_method",
                format!("{path} does not take {method}"),
            ))
        }
        _ => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no_such_path",
            format!("there is nothing at '{path}'"),
        )
        .hint("see /v1/status, /v1/probes, /v1/entities, /v1/events, /v1/metrics, /v1/config, /v1/reload, /v1/selftest")),
    }
}

/// Who may connect may read; changes are for root and for one group.
fn allow_change(engine: &Engine, peer: &Peer) -> Result<()> {
    let group = engine.config().control_group;
    let own = rustix::process::geteuid().as_raw();
    let is_member = || listen::group_id(&group).is_some_and(|id| peer.groups.contains(&id));
    if peer.uid == 0 || peer.uid == own || is_member() {
        return Ok(());
    }
    tracing::warn!(
        uid = peer.uid,
        pid = peer.pid,
        "a change was refused: the user is not in the group '{group}'"
    );
    let (message, hint) = match group.as_str() {
        "" => ("only root may change this".to_owned(), "use sudo".to_owned()),
        group => (
            format!("only root and members of the group '{group}' may change this"),
            format!("use sudo, or as root: usermod --append --groups {group} USER, and log in again"),
        ),
    };
    Err(Refusal::new(StatusCode::FORBIDDEN, "not_allowed", message).hint(hint))
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message);
    let collected =
        tokio::time::timeout(BODY_TIME, Limited::new(request.into_body(), MAX_BODY).collect()).await;
    let collected = collected.map_err(|_| {
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the request body did not come in time")
    })?;
    let bytes = collected.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let message = format!("the request body is larger than {MAX_BODY} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        } else {
            bad(format!("the request body cannot be read: {error}"))
        }
    })?;
    serde_json::from_slice(&bytes.to_bytes()).map_err(|error| bad(format!("the request body: {error}")))
}

async fn entities(engine: &Engine, query: &Query) -> Result<Answer> {
    if let Some(after) = number(query, "after")? {
        let mut changes = engine.name_changes();
        // Without a change in time the picture as it is goes out; the client asks again.
        let _ = tokio::time::timeout(LONG_POLL, changes.wait_for(|generation| *generation > after)).await;
    }
    Ok(answer::json(&engine.entities().await))
}

async fn metrics(engine: &Engine, query: &Query) -> Result<Answer> {
    let Some(name) = query.one("entity") else {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", "which entity? add ?entity=NAME"));
    };
    match engine.entity_metrics(name).await {
        Ok(Ok(metrics)) => Ok(answer::json(&metrics)),
        Ok(Err(error)) => Err(no_such_entity(&error)),
        Err(error @ (PassError::TooLate | PassError::Stopping)) => {
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_late", error.to_string()))
        }
    }
}

fn no_such_entity(error: &NoSuchEntity) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no_such_entity", error.to_string()).hint(error.hint())
}

fn number(query: &Query, name: &str) -> Result<Option<u64>> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            Refusal::new(StatusCode::BAD_REQUEST, "bad_request", format!("{name}={text}: it is not a number"))
        })
    };
    query.one(name).map(parse).transpose()
}

/// History, then live if `follow=1`.
fn events(engine: &Engine, query: &Query) -> Result<Answer> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message);
    let known = ["follow", "since", "after", "type", "entity", "limit"];
    if let Some(unknown) = query.unknown(&known) {
        return Err(bad(format!("unknown parameter '{unknown}'; known are {}", known.join(", "))));
    }
    let mut wanted = EventFilter::default();
    if let Some(entity) = query.one("entity") {
        if !filter::is_entity(entity) {
            return Err(bad(format!(
                "entity={entity}: write a name, KIND/NAME or an inode; * stands for any text"
            )));
        }
        wanted.entity = Some(Entities::only(vec![entity.to_owned()]));
    }
    for kind in query.all("type").flat_map(|value| value.split(',')) {
        wanted.kinds.push(engine.event_type(kind).map_err(bad)?);
    }
    wanted.since = query.one("since").map(|text| since(text).map_err(bad)).transpose()?;
    let follow = query.one("follow").is_some_and(|value| value != "0" && value != "false");
    let (after, limit) = (number(query, "after")?, number(query, "limit")?);
    let history = Arc::clone(engine.history());
    // The place is taken here and not when the reader runs, or those who come at once would all get one.
    let newest = if follow { Some(history.follow(MAX_FOLLOWERS).ok_or_else(too_many)?) } else { None };
    let mut reader = Reader {
        after: after.unwrap_or_else(|| history.before_oldest()),
        filter: wanted,
        history,
        left: None,
    };
    match (after, limit) {
        // Without a place to go on from, a limit means the last ones of the history.
        (None, Some(limit)) => reader.skip_to_last(limit),
        (Some(_), Some(limit)) if !follow => reader.left = Some(limit),
        _ => {}
    }
    // A few pieces may wait for the client; then the reader waits, and what it misses is told.
    let (mut sender, channel) = Channel::<Bytes, Infallible>::new(4);
    let (mut gone, alive) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            () = reader.run(&mut sender, newest) => {}
            () = gone.closed() => {}
        }
    });
    Ok(answer::body("application/x-ndjson", answer::Watched::new(channel, alive).boxed()))
}

fn too_many() -> Refusal {
    let message = format!("{MAX_FOLLOWERS} clients follow the events already");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_many", message)
}

/// `5m` ago, or a date.
fn since(text: &str) -> std::result::Result<Timestamp, String> {
    if let Ok(date) = text.parse::<Timestamp>() {
        return Ok(date);
    }
    let ago = crate::config::parse_duration(text)
        .map_err(|_| format!("since={text}: write a duration (5m) or a date (2026-01-31T12:00:00Z)"))?;
    Timestamp::now().checked_sub(ago).map_err(|_| format!("since={text}: that is too long ago"))
}

/// Reads events for one client.
struct Reader {
    history: Arc<History>,
    after: u64,
    filter: EventFilter,
    left: Option<u64>,
}

impl Reader {
    /// Sends what there is, then what comes if there is a `newest` to wait for.
    async fn run(
        &mut self,
        sender: &mut http_body_util::channel::Sender<Bytes, Infallible>,
        mut newest: Option<watch::Receiver<u64>>,
    ) {
        loop {
            let batch = self.history.read(self.after, BATCH);
            self.after = batch.next_after;
            let lines = self.lines(&batch);
            if !lines.is_empty() && sender.send_data(lines.into()).await.is_err() {
                return;
            }
            if self.left == Some(0) {
                return;
            }
            if !batch.events.is_empty() {
                continue;
            }
            let Some(newest) = &mut newest else { return };
            let after = self.after;
            let history = &self.history;
            let woken = newest.wait_for(|seq| *seq > after || history.is_closed()).await.map(|seq| *seq);
            if woken.is_err() || history.is_closed() {
                return;
            }
        }
    }

    fn lines(&mut self, batch: &Batch) -> Vec<u8> {
        let mut lines = Vec::new();
        if batch.missed > 0 {
            write_line(&mut lines, &EventLine::Missed { missed: batch.missed });
        }
        let wanted = batch.events.iter().filter(|event| self.filter.matches(event));
        let most = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let mut sent = 0;
        for event in wanted.take(most) {
            write_line(&mut lines, &**event);
            sent += 1;
        }
        self.left = self.left.map(|left| left - sent);
        lines
    }

    /// Moves to before the last `limit` events that are wanted.
    fn skip_to_last(&mut self, limit: u64) {
        let mut seqs = Vec::new();
        let mut after = self.after;
        loop {
            let batch = self.history.read(after, BATCH);
            seqs.extend(
                batch.events.iter().filter(|event| self.filter.matches(event)).map(|event| event.seq),
            );
            after = batch.next_after;
            if batch.events.is_empty() {
                break;
            }
        }
        let skip = seqs.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        self.after = seqs.get(skip).map_or(after, |first| first - 1);
    }
}

fn write_line(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    match serde_json::to_writer(&mut *out, value) {
        Ok(()) => out.push(b'\n'),
        Err(error) => tracing::error!(%error, "an event cannot be written as JSON"),
    }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Refusal {
        let message = error.to_string();
        match error {
            ChangeError::NoSuchProbe(_) => {
                let suggested = message.contains("Did you mean");
                let refusal = Refusal::new(StatusCode::NOT_FOUND, "no_such_probe", message);
                if suggested { refusal } else { refusal.hint("netskoopctl probes list shows them") }
            }
            ChangeError::Busy(_) => {
                Refusal::new(StatusCode::CONFLICT, "busy", message).hint("try again in a moment")
            }
            ChangeError::BadRequest(_) => Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message),
            ChangeError::NotAvailable(_) => {
                Refusal::new(StatusCode::CONFLICT, "not_available", message).hint("nothing of it was changed")
            }
            ChangeError::BadConfig(_) => Refusal::new(StatusCode::BAD_REQUEST, "bad_config", message)
                .hint("the running configuration stays in force"),
            ChangeError::NotStored(_) => {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "not_stored", message)
                    .hint("nothing was changed")
            }
        }
    }
}
