//! What a run came to: the exit code that says so, in one list from which the help of every command
//! is made, and a failure in words.

use std::fmt::{self, Write as _};

use projector::counts::Counts;

/// The exit code of a process that a second signal ended at once.
pub(crate) const SECOND_SIGNAL: u8 = 130;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is done.
    Done,
    /// Something is not applied.
    Failed,
    /// A flag, a variable or the set-up is wrong.
    Configuration,
    /// All is done, and some records are in `rejected_records`.
    DoneWithRejections,
    /// The gap cannot be closed from the streams, or there would be too many readers; or the
    /// readers must not switch.
    Unsafe,
    /// Records can have been trimmed away before they were read.
    Trimmed,
    /// A signal ended the run before all was applied.
    Interrupted,
    /// Two sides that were compared differ.
    Different,
}

impl Outcome {
    /// Every outcome, by exit code.
    const ALL: [Self; 8] = [
        Self::Done,
        Self::Failed,
        Self::Configuration,
        Self::DoneWithRejections,
        Self::Unsafe,
        Self::Trimmed,
        Self::Interrupted,
        Self::Different,
    ];

    /// What a run that applied everything came to.
    pub(crate) fn of(counts: &Counts) -> Self {
        if counts.rejected > 0 { Self::DoneWithRejections } else { Self::Done }
    }

    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Configuration => 2,
            Self::DoneWithRejections => 3,
            Self::Unsafe => 4,
            Self::Trimmed => 5,
            Self::Interrupted => 6,
            Self::Different => 7,
        }
    }

    /// What the exit code says to the operator, in lines that fit a terminal of 80 columns.
    fn meaning(self) -> &'static [&'static str] {
        match self {
            Self::Done => &["done"],
            Self::Failed => &[
                "failed: something is not applied; fix the cause that the message names,",
                "then run the same command again",
            ],
            Self::Configuration => &[
                "configuration: a flag, a variable or the set-up is wrong; the message",
                "names it",
            ],
            Self::DoneWithRejections => &["done, and some records are in rejected_records"],
            Self::Unsafe => &[
                "not safe: the streams do not hold every change since the snapshot, or",
                "have too many readers; of ready: do not switch, a condition does not",
                "hold",
            ],
            Self::Trimmed => &[
                "records can have been trimmed away unread (with --allow-gap: everything",
                "else is applied)",
            ],
            Self::Interrupted => {
                &["ended by SIGINT or SIGTERM before all was applied; the same command", "resumes"]
            }
            Self::Different => &["different: the two sides differ, and go on to differ"],
        }
    }
}

/// What to do after a failure, beyond what its cause says: a line of its own below the cause. Added
/// last, with `anyhow::Error::context`.
#[derive(Debug)]
pub(crate) struct Remedy(pub(crate) String);

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The lines that say why a run failed: the cause comes first.
pub(crate) fn failure(error: &anyhow::Error) -> Vec<String> {
    let (cause, remedy) = cause_and_remedy(error);
    std::iter::once(format!("backfill: {cause}")).chain(remedy).collect()
}

/// The same as one text, for JSON.
pub(crate) fn failure_as_text(error: &anyhow::Error) -> String {
    let (cause, remedy) = cause_and_remedy(error);
    std::iter::once(cause).chain(remedy).collect::<Vec<_>>().join("; ")
}

fn cause_and_remedy(error: &anyhow::Error) -> (String, Option<String>) {
    let remedy = error.downcast_ref::<Remedy>().map(Remedy::to_string);
    // One that is not the outermost is part of the chain.
    let remedy = remedy.filter(|remedy| *remedy == error.to_string());
    let (cause, remedy) = match (error.source(), remedy) {
        (Some(cause), Some(remedy)) => (cause, Some(remedy)),
        (_, _) => (error.as_ref() as &(dyn std::error::Error + 'static), None),
    };
    (projector::error::chain(cause), remedy)
}

/// The table of exit codes, for the help of every command.
pub(crate) fn exit_codes() -> String {
    let mut text = "Exit codes:".to_owned();
    let second_signal: &[&str] = &["ended at once by a second signal"];
    let outcomes = Outcome::ALL.map(|outcome| (outcome.code(), outcome.meaning()));
    for (code, lines) in outcomes.into_iter().chain([(SECOND_SIGNAL, second_signal)]) {
        let mut number = code.to_string();
        for line in lines {
            let _ = write!(text, "\n  {number:<3}  {line}");
            number.clear();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Remedy, SECOND_SIGNAL, exit_codes, failure, failure_as_text};
    use crate::cli;

    #[test]
    fn the_codes_are_those_of_the_contract() {
        assert_eq!(Outcome::ALL.map(Outcome::code), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn every_command_lists_every_code() {
        let mut cli = cli::command(100);
        cli.build();
        let help = |command: &mut clap::Command| command.render_long_help().to_string();
        let mut helps = vec![("backfill".to_owned(), help(&mut cli))];
        for command in cli.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            helps.push((command.get_name().to_owned(), help(command)));
        }
        let reconcile = cli.find_subcommand_mut("reconcile").expect("a command");
        for command in reconcile.get_subcommands_mut().filter(|it| it.get_name() != "help") {
            helps.push((command.get_name().to_owned(), help(command)));
        }
        assert_eq!(helps.len(), 16 + 3);
        for (name, help) in helps {
            let (_, codes) = help.split_once("Exit codes:").expect(&name);
            let listed: Vec<u8> = codes
                .lines()
                .filter_map(|line| line.split_whitespace().next()?.parse().ok())
                .collect();
            assert_eq!(listed, [0, 1, 2, 3, 4, 5, 6, 7, SECOND_SIGNAL], "{name}: {codes}");
        }
    }

    #[test]
    fn the_cause_of_a_failure_stands_before_the_remedy() {
        let error = || anyhow::anyhow!("S3 is away").context("cannot write");
        assert_eq!(failure(&error()), ["backfill: cannot write: S3 is away"]);
        let remedy = || Remedy("run it again".to_owned());
        let expected = ["backfill: cannot write: S3 is away", "run it again"];
        assert_eq!(failure(&error().context(remedy())), expected);
        let text = failure_as_text(&error().context(remedy()));
        assert_eq!(text, "cannot write: S3 is away; run it again");
        let within = error().context(remedy()).context("stopped");
        assert_eq!(failure(&within), ["backfill: stopped: run it again: cannot write: S3 is away"]);
    }

    #[test]
    fn the_table_fits_a_terminal_of_80_columns() {
        for line in exit_codes().lines() {
            assert!(line.len() <= 79, "{line}");
        }
    }
}
