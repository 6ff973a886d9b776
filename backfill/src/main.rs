//! The program `backfill`. All of it is in the library of that name, which the Lambda function
//! shares.

use std::process::ExitCode;

fn main() -> ExitCode {
    backfill::program::main()
}
