//! One file per subcommand: it reads the flags, puts the parts together, and says what came of it.
//! What only one command needs stands in its folder.

pub(crate) mod check;
pub(crate) mod doctor;
pub(crate) mod file;
pub(crate) mod merge;
pub(crate) mod migrate;
pub(crate) mod objects;
pub(crate) mod ready;
pub(crate) mod reconcile;
pub(crate) mod redrive;
pub(crate) mod repair;
pub(crate) mod shell;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod verify;
