//! What the tests and the benchmark stand on: records and whole days of them, an oracle that says
//! what must come out, the services, and gates in front of these that fail on command.

pub mod aws_json;
pub mod aws_server;
pub mod closed_streams;
pub mod clusters;
pub mod cut_gate;
pub mod dynamodb;
pub mod dynamodb_gate;
pub mod emulator;
pub mod exports;
pub mod gates;
pub mod generate;
mod http;
pub mod mapping;
pub mod memory_s3;
pub mod oracle;
pub mod records;
pub mod registry;
pub mod route53;
pub mod runs;
pub mod runtime_api;
pub mod s3_gate;
pub mod services;
pub mod sql;
pub mod standby;
pub mod states_server;
pub mod stream_server;
pub mod table_server;
pub mod trim;
