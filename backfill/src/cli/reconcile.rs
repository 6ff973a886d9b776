//! The flags of `reconcile`, whose commands start and watch executions of the state machine of
//! infra/reconcile.yaml.

use clap::{Args, Subcommand};

use super::settings::TableSettings;
use crate::outcome::exit_codes;

/// The help of `backfill reconcile --help`.
pub(super) const HELP: &str = "\
Compare or repair whole tables with a state machine: one function per file of an export, many at \
a time. For tables that take one machine too long to read.

`start` starts an execution, `status` shows one, `wait` follows one to its end. The work runs in \
AWS: nothing that ends this program, and no signal, ends the execution.

infra/reconcile.yaml makes the state machine. Its output StateMachine is the value of \
--state-machine and of the variable RECONCILE_STATE_MACHINE.";

const START: &str = "\
Start an execution of the state machine.

Without --repair it only compares, and writes nothing but one row in verifications. With --repair \
it repairs what differs, as `backfill repair --export` does; no other repair, merge or redrive \
runs meanwhile. With --failures it reads again what the projector gave up on, and deletes each \
object of that bucket once it is settled.

Without --export the execution exports both tables first. Begin with --dry-run, which says what it \
costs and how long it takes.

Two starts never make two runs by accident. The name of an execution is the minute of its start, \
and Step Functions takes a name once in 90 days. The same start within a minute finds the \
execution that the first one made, and says so. With --name it does so at any time, so that a \
script may repeat the command. While another execution runs, `start` refuses, unless you give \
--beside.

The role needs states:StartExecution and states:ListExecutions on the state machine, and \
states:DescribeExecution on its executions. --wait needs what `wait` needs. --dry-run needs \
dynamodb:DescribeTable, and reads the state machine's concurrency and the function's memory if \
states:DescribeStateMachine and lambda:GetFunctionConfiguration are allowed.";

const STATUS: &str = "\
Show how far an execution has come, or what it came to.

Without EXECUTION it shows the one that was started last. It writes nothing. Exit code 0 while the \
execution runs, and after its end the exit code of `wait`.

The role needs what `wait` needs.";

const WAIT: &str = "\
Follow an execution to its end, and say what it came to.

The exit codes are those of `verify` and `repair`: 0 if a comparison found no difference, or if \
all is repaired; 7 if a comparison found differences; 3 if a repair left items in \
rejected_records; 1 if the execution failed, timed out or was stopped. The message then names the \
file or the range that failed, its error, and what to do.

SIGINT and SIGTERM end this command, not the execution (exit code 6): run the same command again, \
or stop the execution with `aws stepfunctions stop-execution`.

The role needs states:DescribeExecution, states:GetExecutionHistory and states:ListMapRuns on the \
executions, states:DescribeMapRun and states:ListExecutions on the map runs, and \
states:ListExecutions on the state machine. Without the rights on the map runs it shows less.";

#[derive(Debug, Args)]
pub(crate) struct ReconcileArguments {
    #[command(subcommand)]
    pub(crate) command: ReconcileCommand,
}

/// What to do with an execution.
#[derive(Debug, Subcommand)]
pub(crate) enum ReconcileCommand {
    /// Start an execution of the state machine.
    #[command(long_about = START, after_help = exit_codes())]
    Start(Box<StartArguments>),
    /// Show how far an execution has come, or what it came to.
    #[command(long_about = STATUS, after_help = exit_codes())]
    Status(WatchArguments),
    /// Follow an execution to its end, and say what it came to.
    #[command(long_about = WAIT, after_help = exit_codes())]
    Wait(WatchArguments),
}

impl ReconcileArguments {
    /// The settings of the command that is given.
    pub(super) fn settings(&self) -> super::Settings {
        match &self.command {
            ReconcileCommand::Start(arguments) => arguments.settings.settings(),
            ReconcileCommand::Status(_) | ReconcileCommand::Wait(_) => super::Settings::default(),
        }
    }

    /// Whether the result is to be JSON.
    pub(super) fn is_json(&self) -> bool {
        match &self.command {
            ReconcileCommand::Start(arguments) => arguments.format.json,
            ReconcileCommand::Status(arguments) | ReconcileCommand::Wait(arguments) => {
                arguments.format.json
            }
        }
    }
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct StartArguments {
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    /// Repair what differs. Without it, the execution only compares.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Only compare, as without --repair; a script may say so explicitly.
    #[arg(long, conflicts_with_all = ["repair", "failures"])]
    pub(crate) compare_only: bool,
    /// Read again what the projector gave up on and wrote to its bucket of failures. This repairs;
    /// it compares and exports nothing.
    #[arg(long, conflicts_with_all = ["export", "dry_run"])]
    pub(crate) failures: bool,
    /// Take these full exports instead of new ones: first that of the sessions, then that of the
    /// scans. They must be in the state machine's bucket (its output `ExportBucket`), and be
    /// younger than 23 hours when the run begins.
    #[arg(long, num_args = 2, value_names = ["SESSIONS_EXPORT_ARN", "SCANS_EXPORT_ARN"])]
    pub(crate) export: Option<Vec<String>>,
    /// The name of the execution, for a script that may repeat the command: 1 to 80 of letters,
    /// digits, `-` and `_`. Without it, the minute of the start.
    #[arg(long, value_name = "NAME", value_parser = execution_name)]
    pub(crate) name: Option<String>,
    /// Start although another execution of the state machine runs. A second repair waits up to half
    /// an hour for the lease of the first one, and then fails.
    #[arg(long)]
    pub(crate) beside: bool,
    /// Follow the execution to its end, as `reconcile wait` does.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Start nothing, and say what the run costs and how long it takes, from the sizes of the
    /// tables.
    #[arg(long, conflicts_with_all = ["wait", "name", "beside"])]
    pub(crate) dry_run: bool,
    /// With --dry-run: the memory of the function, if it is not to be asked for.
    #[arg(long, value_name = "MB", requires = "dry_run", value_parser = clap::value_parser!(u32).range(128..=10_240))]
    pub(crate) memory_mb: Option<u32>,
    /// With --dry-run: how many files are read at a time, if it is not to be asked for.
    #[arg(long, value_name = "COUNT", requires = "dry_run", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: Option<u32>,
    #[command(flatten)]
    pub(super) format: super::Format,
    #[command(flatten)]
    pub(super) settings: TableSettings,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    /// The ARN of the execution, or its name. Without it, the one that was started last.
    #[arg(value_name = "EXECUTION")]
    pub(crate) execution: Option<String>,
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    #[command(flatten)]
    pub(super) format: super::Format,
}

#[derive(Debug, Args)]
pub(crate) struct MachineArguments {
    /// The ARN of the state machine: the output `StateMachine` of infra/reconcile.yaml.
    #[arg(long, env = "RECONCILE_STATE_MACHINE", value_name = "ARN")]
    state_machine: Option<String>,
}

impl MachineArguments {
    /// The ARN, if one is set. An empty variable counts as unset.
    pub(crate) fn arn(&self) -> Option<&str> {
        self.state_machine.as_deref().filter(|arn| !arn.is_empty())
    }
}

/// What Step Functions takes without escapes in an ARN.
fn execution_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=80).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("not 1 to 80 of letters, digits, - and _".to_owned())
    }
}
