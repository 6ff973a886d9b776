//! Against handlers as a user would write them, and published ones (`tests/peers/`), on the same
//! events, the same servers, the same Runtime API: first what is wrong at the end (`wrong.rs`),
//! then speed and memory (`speed.rs`).

mod handler;
mod history;
mod mapping;
pub(crate) mod speed;
pub(crate) mod wrong;

pub(crate) use handler::Handler;
