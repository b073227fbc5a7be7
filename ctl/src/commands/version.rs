//! `netskoopctl version`.

use super::Context;
use crate::args::Format;
use crate::error::Error;
use netskoop_api::Status;

/// This program's version.
const CLIENT: &str = env!("CARGO_PKG_VERSION");

/// Shows both versions. Without a daemon, its own version and the error.
pub(crate) async fn run(context: &mut Context<'_, '_>) -> Result<(), Error> {
    context.refuse_names()?;
    let asked = context.client.get("/v1/status").await.and_then(|document| document.parse::<Status>());
    let daemon = asked.as_ref().ok().map(|status| status.version.as_str());
    if context.format == Format::Json {
        let both = serde_json::json!({ "client": CLIENT, "daemon": daemon });
        context.stdout.document("version", both.to_string().as_bytes())?;
    } else {
        context.stdout.text(&format!("netskoopctl {CLIENT}"))?;
        if let Some(version) = daemon {
            context.stdout.text(&format!("netskoopd   {version}"))?;
        }
    }
    context.stdout.flush()?;
    asked.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::super::testing::ctl;
    use crate::fake::Daemon;

    #[test]
    fn the_own_version_is_known_without_a_daemon() {
        let outcome = ctl(&Daemon::stale(), "version");
        assert_eq!(outcome.code, 3);
        assert_eq!(outcome.out, format!("netskoopctl {}\n", env!("CARGO_PKG_VERSION")));
        assert!(outcome.err.contains("connection refused\n  Is it running?"), "{}", outcome.err);
        let outcome = ctl(&Daemon::stale(), "version -o json");
        assert!(outcome.out.contains("\"daemon\": null"), "{}", outcome.out);
    }
}
