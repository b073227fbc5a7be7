//! `netskoopctl __complete`: what a shell offers at Tab. The command line comes from the declaration in `args`; names of
//! probes, entities and events from the daemon, so that no list of them has to be kept here.

use super::Context;
use crate::args::{Cli, Format};
use crate::error::Error;
use clap::{Arg, Command, CommandFactory};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// Who presses Tab does not wait longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What may stand at a place of the command line.
#[derive(Debug, PartialEq)]
enum Wanted {
    /// One of these words.
    Words(Vec<String>),
    /// A name that the daemon knows.
    Names(Names),
    /// A file, which the shell knows better.
    Nothing,
}

/// Names that only the daemon knows.
#[derive(Clone, Debug, PartialEq)]
enum Names {
    Probes,
    Entities,
    Events,
    /// `key=` for the options of this probe.
    Options(String),
}

/// Writes one candidate a line. Where the daemon does not answer there are none, and no error: that would be in the way.
pub(crate) async fn run(context: &mut Context<'_, '_>, words: &[String]) -> Result<(), Error> {
    let (before, last) = words.split_at(words.len().saturating_sub(1));
    let last = last.first().map_or("", String::as_str);
    let mut command = Cli::command();
    command.build();
    let place = Place::find(&command, before);
    let candidates = match place.wanted(last) {
        Wanted::Words(words) => words,
        Wanted::Names(names) => ask(context, place.socket, &names).await,
        Wanted::Nothing => Vec::new(),
    };
    context.format = Format::Table;
    let fitting = candidates.iter().filter(|word| word.starts_with(last) && is_plain(word));
    fitting.into_iter().try_for_each(|word| context.stdout.text(word))
}

/// A shell gives other characters a meaning.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:@~=".contains(c))
}

/// Where on the command line something is wanted.
struct Place<'a> {
    command: &'a Command,
    /// The option whose value comes next.
    option: Option<&'a Arg>,
    /// Words that are no options and no commands.
    given: Vec<&'a str>,
    socket: Option<PathBuf>,
}

impl<'a> Place<'a> {
    fn find(root: &'a Command, words: &'a [String]) -> Place<'a> {
        let mut place = Place { command: root, option: None, given: Vec::new(), socket: None };
        for word in words {
            place.step(word);
        }
        place
    }

    fn step(&mut self, word: &'a str) {
        if let Some(option) = self.option.take() {
            self.note_socket(option, word);
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) =
                long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            let option = self.command.get_arguments().find(|arg| arg.get_long() == Some(name));
            match (option, value) {
                (Some(option), Some(value)) => self.note_socket(option, value),
                (Some(option), None) if option.get_action().takes_values() => self.option = Some(option),
                _ => {}
            }
        } else if let Some(short) = word.strip_prefix('-') {
            let last = short.chars().last();
            let option = self.command.get_arguments().find(|arg| arg.get_short() == last);
            self.option = option.filter(|option| option.get_action().takes_values());
        } else if let Some(command) = self.command.find_subcommand(word) {
            self.command = command;
        } else {
            self.given.push(word);
        }
    }

    fn note_socket(&mut self, option: &Arg, value: &str) {
        if option.get_id() == "socket" {
            self.socket = Some(value.into());
        }
    }

    fn wanted(&self, last: &str) -> Wanted {
        if let Some(option) = self.option {
            return self.value_of(option);
        }
        if last.starts_with('-') {
            let shown = self.command.get_arguments().filter(|arg| !arg.is_hide_set());
            let names = shown.filter_map(|arg| arg.get_long().map(|long| format!("--{long}")));
            return Wanted::Words(names.collect());
        }
        let commands: Vec<String> = self
            .command
            .get_subcommands()
            .filter(|command| !command.is_hide_set() && command.get_name() != "help")
            .map(|command| command.get_name().to_owned())
            .collect();
        if !commands.is_empty() && self.given.is_empty() {
            return Wanted::Words(commands);
        }
        match self.command.get_positionals().next() {
            Some(argument) if self.given.is_empty() || argument.get_id() == "names" => {
                self.value_of(argument)
            }
            _ => Wanted::Nothing,
        }
    }

    fn value_of(&self, argument: &Arg) -> Wanted {
        match (self.command.get_name(), argument.get_id().as_str()) {
            ("enable" | "disable" | "show", "names" | "probe") => Wanted::Names(Names::Probes),
            (_, "entity") | ("entities", "name") => Wanted::Names(Names::Entities),
            (_, "types") => Wanted::Names(Names::Events),
            ("enable", "set") => {
                let probe = self.given.first().map(|name| (*name).to_owned());
                probe.map_or(Wanted::Nothing, |probe| Wanted::Names(Names::Options(probe)))
            }
            _ => {
                let values = argument.get_possible_values();
                let names: Vec<String> = values.iter().map(|value| value.get_name().to_owned()).collect();
                if names.is_empty() { Wanted::Nothing } else { Wanted::Words(names) }
            }
        }
    }
}

async fn ask(context: &Context<'_, '_>, socket: Option<PathBuf>, names: &Names) -> Vec<String> {
    let client = context.client.hasty(socket, PATIENCE);
    let path = if *names == Names::Entities { "/v1/entities" } else { "/v1/probes" };
    let answer = client.get(path).await.and_then(|document| document.parse::<Value>());
    answer.map(|answer| found(&answer, names)).unwrap_or_default()
}

/// The names in an answer.
fn found(answer: &Value, names: &Names) -> Vec<String> {
    let list = |value: &Value, key: &str| -> Vec<Value> {
        value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let probes = || answer.as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value.get("name").and_then(Value::as_str).map(ToOwned::to_owned);
    match names {
        Names::Probes => probes().iter().filter_map(name).collect(),
        Names::Entities => {
            let entities = list(answer, "entities");
            let shown = entities.iter().filter_map(|entity| {
                let (namespace, pod) = (entity.get("namespace")?.as_str()?, entity.get("pod")?.as_str()?);
                Some(format!("{namespace}/{pod}"))
            });
            let named = entities.iter().filter(|entity| entity.get("pod").is_none()).filter_map(name);
            shown.chain(named).collect()
        }
        Names::Events => {
            let events = probes().iter().flat_map(|probe| list(probe, "events")).collect::<Vec<_>>();
            events.iter().filter_map(name).collect()
        }
        Names::Options(probe) => {
            let probe = probes().into_iter().find(|found| name(found).as_ref() == Some(probe));
            let options = probe.map(|probe| list(&probe, "options")).unwrap_or_default();
            options.iter().filter_map(|option| Some(format!("{}=", name(option)?))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::ctl;
    use crate::fake::{Daemon, json};

    const PROBES: &str = r#"[{"name":"tcp","events":[]},
        {"name":"tcpreset","options":[{"name":"stack"},{"name":"limit"}],"events":[{"name":"TCP_RESET"},{"name":"$(x)"}]},
        {"name":"udp"},{"name":"tcp;rm"}]"#;

    fn offered(line: &str, answer: &str) -> String {
        let daemon = Daemon::answering(json(200, answer));
        let outcome = ctl(&daemon, &format!("__complete -- {line}"));
        assert_eq!((outcome.code, outcome.err.as_str()), (0, ""), "{line}");
        outcome.out.replace('\n', " ")
    }

    #[test]
    fn commands_and_options_come_from_the_declaration() {
        assert_eq!(offered("pro", ""), "probes ");
        assert_eq!(offered("probes e", ""), "enable ");
        assert_eq!(offered("probes enable --ru", ""), "--runtime ");
        assert_eq!(offered("-o ", ""), "table json name ");
        assert_eq!(offered("status --output j", ""), "json ");
        let all = offered("", "");
        assert!(all.contains("status ") && !all.contains("__complete") && !all.contains("help"), "{all}");
        assert_eq!(offered("nonsense ", ""), "");
    }

    #[test]
    fn names_come_from_the_daemon_and_are_harmless() {
        assert_eq!(offered("probes enable tcp", PROBES), "tcp tcpreset ");
        assert_eq!(offered("probes disable udp tcpr", PROBES), "tcpreset ");
        assert_eq!(offered("probes show u", PROBES), "udp ");
        assert_eq!(offered("probes enable tcpreset --set ", PROBES), "stack= limit= ");
        assert_eq!(offered("events --type ", PROBES), "TCP_RESET ");
        let entities =
            r#"{"entities":[{"name":"blue"},{"name":"x","namespace":"a","pod":"b"},{"name":"a b"}]}"#;
        assert_eq!(offered("metrics ", entities), "a/b blue ");
        assert_eq!(offered("events --entity b", entities), "blue ");
        assert_eq!(offered("entities ", entities), "a/b blue ");
    }

    #[test]
    fn a_daemon_that_talks_nonsense_is_no_error() {
        assert_eq!(offered("probes enable ", "[1,{}]"), "");
        assert_eq!(offered("metrics ", "7"), "");
    }
}
