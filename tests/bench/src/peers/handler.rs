//! The handlers, and how each is started.

use testkit::services::service;
use tokio::process::Command;

use crate::{measure, servers};

/// A handler of both streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handler {
    Projector,
    RecordByRecord,
    Powertools,
    AwsLambdaStream,
    AwsLambdaStreamCompact,
    BatchedPython,
    BatchedNode,
    Guarded,
}

impl Handler {
    /// The projector first.
    pub(crate) const ALL: [Self; 8] = [
        Self::Projector,
        Self::RecordByRecord,
        Self::Powertools,
        Self::AwsLambdaStream,
        Self::AwsLambdaStreamCompact,
        Self::BatchedPython,
        Self::BatchedNode,
        Self::Guarded,
    ];

    /// Its program in `tests/peers/`, with its argument.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::RecordByRecord => "record_by_record.py",
            Self::Powertools => "powertools.py",
            Self::AwsLambdaStream => "aws_lambda_stream.cjs",
            Self::AwsLambdaStreamCompact => "aws_lambda_stream.cjs compact",
            Self::BatchedPython => "batched.py",
            Self::BatchedNode => "batched.cjs",
            Self::Guarded => "guarded.cjs",
        }
    }

    /// How many times as fast we want to be: these two write record by record, in turn.
    pub(crate) fn aim(self) -> f64 {
        match self {
            Self::RecordByRecord | Self::Powertools => 40.0,
            _ => 4.0,
        }
    }

    /// Its program, ready to be started as a function.
    ///
    /// # Errors
    /// If the projector is not built.
    pub(crate) fn command(self) -> anyhow::Result<Command> {
        let mut words = self.name().split(' ');
        let program = words.next().unwrap_or_default();
        let mut command = match self {
            Self::Projector => return servers::projector(),
            Self::RecordByRecord | Self::Powertools | Self::BatchedPython => {
                Command::new(service("PEERS_PYTHON"))
            }
            Self::AwsLambdaStream
            | Self::AwsLambdaStreamCompact
            | Self::BatchedNode
            | Self::Guarded => Command::new("node"),
        };
        command.arg(measure::peers().join(program)).args(words);
        // The SDK says at each start which versions of Node it will want one day.
        command.env("NODE_NO_WARNINGS", "1");
        Ok(command)
    }
}
