//! `netskoopctl reload`.

use super::Context;
use crate::error::Error;
use crate::output::Screen;
use netskoop_api::{ErrorInfo, Reloaded};

/// Asks for it and says what changed.
pub(crate) async fn run(context: &mut Context<'_, '_>) -> Result<(), Error> {
    context.refuse_names()?;
    let document = context.client.post("/v1/reload").await.map_err(keep_every_fault)?;
    context.print(&document, None, render)
}

pub(super) fn render(reloaded: &Reloaded, screen: &mut Screen<'_>) -> Result<(), Error> {
    if reloaded.changes.is_empty() {
        return screen.text("Nothing changed.");
    }
    reloaded.changes.iter().try_for_each(|change| screen.text(change))
}

/// The daemon lists all faults of a configuration, one per line; they go below a line that says what follows from them.
pub(super) fn keep_every_fault(error: Error) -> Error {
    match error {
        Error::Api { status, info } if info.code == "bad_config" => {
            let message =
                format!("the configuration is not valid; netskoopd keeps the one it has\n{}", info.message);
            let hint = info.hint.or_else(|| Some("Correct it and try again:  netskoopctl reload".to_owned()));
            Error::Api { status, info: ErrorInfo { message, hint, ..info } }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::ctl;
    use crate::fake::{Daemon, json};

    #[test]
    fn says_what_changed() {
        let daemon = Daemon::answering(json(200, r#"{"changes":["tcpreset is off now","a\u001b"]}"#));
        assert_eq!(ctl(&daemon, "reload").out, "tcpreset is off now\na\\u{1b}\n");
        assert!(daemon.request().starts_with("POST /v1/reload "));
        assert_eq!(
            ctl(&Daemon::answering(json(200, r#"{"changes":[]}"#)), "reload").out,
            "Nothing changed.\n"
        );
    }

    #[test]
    fn lists_every_fault() {
        let body = r#"{"error":{"code":"bad_config","message":"/etc/a.toml:1:2: x\n/etc/a.toml:3:4: y"}}"#;
        let outcome = ctl(&Daemon::answering(json(400, body)), "reload");
        assert_eq!(outcome.code, 1);
        assert_eq!(
            outcome.err,
            "netskoopctl: the configuration is not valid; netskoopd keeps the one it has\n  \
             /etc/a.toml:1:2: x\n  /etc/a.toml:3:4: y\n  Correct it and try again:  netskoopctl reload\n"
        );
    }
}
