//! The TCP side: `/metrics` and what a scraper or a load balancer expects beside it. It only reads.

use super::answer::{self, Answer, Pieces, Refusal};
use super::exposition;
use super::query::Query;
use crate::declare::{Names, Probe};
use crate::engine::Engine;
use crate::engine::pass::PassError;
use crate::engine::select::{Exposition, Selection};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, VARY};
use hyper::{Method, Request, StatusCode};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// Prometheus says how long it waits; we end a little earlier, so that it gets what there is.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";

/// Answers a request on the TCP port.
pub async fn handle(engine: Arc<Engine>, request: Request<Incoming>) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "read_only", "this port is for reading only")
            .hint("changes are made with netskoopctl, through the daemon's Unix socket")
            .text();
    }
    match request.uri().path() {
        "/metrics" => scrape(&engine, &request).await.unwrap_or_else(Refusal::text),
        "/-/healthy" if engine.is_healthy() => answer::text("text/plain; charset=utf-8", "healthy\n"),
        "/-/healthy" => {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "unhealthy", "a part of the daemon does not answer")
                .text()
        }
        // The servers start when the first collection has worked, so whoever reaches this is told so.
        "/-/ready" => answer::text("text/plain; charset=utf-8", "ready\n"),
        "/" => answer::text("text/html; charset=utf-8", landing(&engine)),
        path => Refusal::new(StatusCode::NOT_FOUND, "no_such_path", format!("there is nothing at '{path}'"))
            .hint("try /metrics, /-/healthy, /-/ready")
            .text(),
    }
}

async fn scrape(engine: &Engine, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let query = Query::parse(request.uri().query());
    let selection = selection(engine, &query)?;
    let exposition =
        engine.scrape(&selection, deadline(request.headers())).await.map_err(|error| match error {
            PassError::TooLate => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_late",
                "the collection did not end in time",
            )
            .hint("see `netskoopctl status`; a longer scrape_timeout or metrics.timeout may be needed"),
            PassError::Stopping => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the daemon is stopping")
            }
        })?;
    Ok(if accepts_gzip(request.headers()) {
        let mut answer = answer::body(exposition::CONTENT_TYPE, Pieces(Gzip::new(exposition)).boxed());
        answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        answer
    } else {
        answer::body(exposition::CONTENT_TYPE, Pieces(exposition).boxed())
    })
}

/// What the query asks for: `names=`, `labels=`, `set=`, `collect[]=`, `exclude[]=`.
fn selection(engine: &Engine, query: &Query) -> Result<Selection, Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message);
    if let Some(unknown) = query.unknown(&["names", "labels", "set", "collect[]", "exclude[]"]) {
        return Err(bad(format!(
            "unknown parameter '{unknown}'; known are names, labels, set, collect[], exclude[]"
        )));
    }
    let config = engine.config();
    let mut names = Vec::new();
    for word in query.all("names").flat_map(|value| value.split(',')) {
        let found = Names::ALL.into_iter().find(|names| names.as_str() == word);
        names.push(found.ok_or_else(|| {
            bad(format!(
                "names={word}: there is no such set of names; known are netskoop, kubeskoop, inspector"
            ))
        })?);
    }
    let names = if names.is_empty() { config.names } else { names };
    let target = match query.one("labels") {
        None => config.target_labels,
        Some("default") => false,
        Some("target") if names.contains(&Names::Inspector) => true,
        Some("target") => return Err(bad("labels=target: only names=inspector have these".to_owned())),
        Some(other) => return Err(bad(format!("labels={other}: it is either default or target"))),
    };
    let full = match query.one("set") {
        None => config.full_set,
        Some("full") => true,
        Some("core") => false,
        Some(other) => return Err(bad(format!("set={other}: it is either core or full"))),
    };
    let find = |name: &str| engine.find_probe(name).map_err(|error| bad(error.to_string()));
    let collect = query.all("collect[]").map(find).collect::<Result<Vec<&'static Probe>, _>>()?;
    let exclude = query.all("exclude[]").map(find).collect::<Result<Vec<&'static Probe>, _>>()?;
    let probes = if collect.is_empty() && exclude.is_empty() {
        None
    } else {
        let all = if collect.is_empty() { crate::engine::all_probes() } else { collect };
        Some(all.into_iter().filter(|probe| !exclude.iter().any(|out| std::ptr::eq(*out, *probe))).collect())
    };
    Ok(Selection { names, target, full, probes })
}

fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(SCRAPE_TIMEOUT)?.to_str().ok()?.parse().ok()?;
    (seconds.is_finite() && seconds > 0.0)
        .then(|| Duration::from_secs_f64((seconds.min(3600.0) - 0.5).max(0.1)))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|part| {
            let mut words = part.split(';').map(str::trim);
            let refused = |word: &str| {
                word.starts_with("q=0") && !word[3..].bytes().any(|b| (b'1'..=b'9').contains(&b))
            };
            words.next() == Some("gzip") && !words.any(refused)
        })
    })
}

/// Compresses pieces as they are taken.
struct Gzip {
    inner: Exposition,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    fn new(inner: Exposition) -> Gzip {
        Gzip { inner, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }
}

impl Iterator for Gzip {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let encoder = self.encoder.as_mut()?;
            match self.inner.next() {
                // Writing into memory does not fail.
                Some(piece) => encoder.write_all(&piece).ok()?,
                None => return self.encoder.take()?.finish().ok(),
            }
            if encoder.get_ref().len() >= 16 * 1024 {
                return Some(std::mem::take(encoder.get_mut()));
            }
        }
    }
}

fn landing(engine: &Engine) -> String {
    let facts = engine.facts();
    let node: String =
        facts.node.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
    format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>netskoopd</title></head><body>\
         <h1>netskoopd {}</h1><p>Node {node}</p><ul>\
         <li><a href=\"/metrics\">Metrics</a> (<a href=\"/metrics?set=full\">all</a>, with the names of \
         <a href=\"/metrics?names=kubeskoop\">KubeSkoop</a> or \
         <a href=\"/metrics?names=inspector\">inspector</a>)</li>\
         <li><a href=\"/-/healthy\">Healthy</a>, <a href=\"/-/ready\">ready</a></li></ul>\
         <p>Events and control: <code>netskoopctl</code> on the node.</p></body></html>\n",
        env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn gzip_only_when_asked() {
        assert!(accepts_gzip(&headers("accept-encoding", "deflate, gzip;q=0.8")));
        assert!(!accepts_gzip(&headers("accept-encoding", "gzip;q=0")));
        assert!(!accepts_gzip(&headers("accept-encoding", "gzip; q=0.0, zstd")));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn the_scraper_s_patience_less_half_a_second() {
        let of = |text| deadline(&headers(SCRAPE_TIMEOUT, text));
        assert_eq!(of("10"), Some(Duration::from_millis(9500)));
        assert_eq!(of("0.2"), Some(Duration::from_millis(100)));
        assert_eq!((of("-1"), of("NaN"), of("soon")), (None, None, None));
    }
}
