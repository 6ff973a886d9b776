//! What touches the world: PostgreSQL and S3. Each store knows nothing of the other.

pub mod archive;
pub mod database;
pub mod pending_objects;
mod rds_token;
pub mod read_model;
pub mod rejected;
