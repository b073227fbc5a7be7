//! `netskoopctl selftest`.

use super::Context;
use crate::error::{Error, Exit};
use crate::output::Screen;
use crate::table::Table;
use crate::text::{Line, Style};
use netskoop_api::{SelfCheck, SelfResult, SelfTest};

/// Asks for it, shows each check, and fails if one did.
pub(crate) async fn run(context: &mut Context<'_, '_>) -> Result<(), Error> {
    context.refuse_names()?;
    let document = context.client.post("/v1/selftest").await?;
    let test: SelfTest = document.parse()?;
    context.print(&document, None, render)?;
    if test.passed { Ok(()) } else { Err(Error::Reported(Exit::Failure)) }
}

fn render(test: &SelfTest, screen: &mut Screen<'_>) -> Result<(), Error> {
    let mut table = Table::new(&["PROBE", "RESULT", "WHAT WAS FOUND"]);
    for check in &test.checks {
        table.row([check.probe.as_str().into(), result(check), check.says.as_str().into()]);
    }
    table.render(screen)?;
    let count = |result| test.checks.iter().filter(|check| check.result == result).count();
    let (ok, failed, skipped) =
        (count(SelfResult::Ok), count(SelfResult::Failed), count(SelfResult::Skipped));
    screen.text(&format!("{ok} ok, {failed} failed, {skipped} skipped, in {:.1} s", test.seconds))
}

fn result(check: &SelfCheck) -> Line {
    let style = match check.result {
        SelfResult::Ok => Style::Good,
        SelfResult::Failed => Style::Bad,
        SelfResult::Skipped => Style::Dim,
    };
    Line::new().styled(style, check.result.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::testing::ctl;
    use crate::fake::{Daemon, json};
    use netskoop_api::{SelfCheck, SelfResult, SelfTest};

    fn check(probe: &str, result: SelfResult, says: &str) -> SelfCheck {
        SelfCheck {
            probe: probe.into(),
            result,
            says: says.into(),
            events: vec![],
            metric: None,
            grown: None,
            expected: None,
            exact: false,
        }
    }

    fn answer(failed: bool) -> Vec<u8> {
        let mut checks = vec![
            check(
                "tcpreset",
                SelfResult::Ok,
                "TCP_RESET_NOSOCK event in 0.2 ms (v4), attributed, counter +1",
            ),
            check("fd", SelfResult::Skipped, "it is off"),
        ];
        if failed {
            checks.push(check("tcprtt", SelfResult::Failed, "no TCP_RTT_SLOW event came (v6)"));
        }
        let test = SelfTest { passed: !failed, seconds: 1.94, checks };
        json(200, &serde_json::to_string(&test).unwrap())
    }

    #[test]
    fn each_check_is_a_line() {
        let daemon = Daemon::answering(answer(false));
        let outcome = ctl(&daemon, "selftest");
        assert!(daemon.request().starts_with("POST /v1/selftest "));
        let expected = "\
PROBE     RESULT   WHAT WAS FOUND
tcpreset  ok       TCP_RESET_NOSOCK event in 0.2 ms (v4), attributed, counter +1
fd        skipped  it is off
1 ok, 0 failed, 1 skipped, in 1.9 s
";
        assert_eq!((outcome.code, outcome.out.as_str(), outcome.err.as_str()), (0, expected, ""));
    }

    #[test]
    fn a_check_that_failed_is_a_failure() {
        let outcome = ctl(&Daemon::answering(answer(true)), "selftest");
        assert_eq!((outcome.code, outcome.err.as_str()), (1, ""));
        assert!(outcome.out.ends_with("1 ok, 1 failed, 1 skipped, in 1.9 s\n"), "{}", outcome.out);
        let outcome = ctl(&Daemon::answering(answer(true)), "selftest -o json");
        assert_eq!((outcome.code, outcome.out.contains("passed")), (1, true));
        assert_eq!(ctl(&Daemon::answering(answer(true)), "selftest -o name").code, 2);
    }

    #[test]
    fn a_second_one_at_a_time_is_refused() {
        let body =
            r#"{"error":{"code":"busy","message":"a self-test runs already; it takes a few seconds"}}"#;
        let outcome = ctl(&Daemon::answering(json(409, body)), "selftest");
        assert_eq!(outcome.code, 1);
        assert!(outcome.err.starts_with("netskoopctl: a self-test runs already"), "{}", outcome.err);
    }
}
