//! A PostgreSQL of a test's own and a hot standby that streams from it: the replica that `verify`
//! and `merge` read while the primary is written.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::runs::until;
use crate::services::{Stores, service};
use crate::sql::Client;

/// The servers listen on loopback alone, and live for one test.
const PASSWORD: &str = "of-one-test";

/// Fast rather than durable, as in `scripts/services/postgres.py`. The primary keeps enough for a
/// standby that pauses, and waits for nobody.
const SETTINGS: [&str; 7] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "full_page_writes=off",
    "wal_keep_size=1GB",
    "shared_buffers=64MB",
    "hot_standby_feedback=off",
];

/// Both servers, and their data. They end with the test.
pub struct Replicated {
    /// The primary: a migrated database, and no bucket.
    pub primary: Stores,
    /// The same database on the standby, which can only be read.
    pub standby: Stores,
    // The servers end before their folder goes.
    _servers: [Server; 2],
    _folder: TempDir,
}

impl Replicated {
    /// Starts both. The settings, `name=value`, are those of the standby alone.
    ///
    /// # Panics
    /// If a server does not start.
    pub async fn start(of_standby: &[&str]) -> Self {
        let owner = Owner::of_the_shared_server().await;
        let folder = owner.folder();
        let (primary, standby) = (folder.path().join("primary"), folder.path().join("standby"));
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).expect("a file");
        let mut initdb = owner.program("initdb");
        initdb.arg("-D").arg(&primary).arg("--pwfile").arg(&password);
        let login = ["-U", "postgres", "-A", "scram-sha-256"];
        run(initdb.args(login).args(["-E", "UTF8", "--locale=C", "--no-sync"]));
        let first = Server::start(&owner, primary, &[]).await;
        let stores = first.stores();
        stores.migrate().await;

        let mut copy = owner.program("pg_basebackup");
        copy.env("PGPASSWORD", PASSWORD).arg("-D").arg(&standby);
        let port = first.port.to_string();
        let from = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
        // -R makes it a standby of the one that it comes from.
        run(copy.args(from).args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]));
        let second = Server::start(&owner, standby, of_standby).await;
        Self {
            primary: stores,
            standby: second.stores(),
            _servers: [first, second],
            _folder: folder,
        }
    }

    /// Waits until the standby shows all that the primary has committed by now.
    ///
    /// # Panics
    /// If it does not within half a minute.
    pub async fn until_caught_up(&self) {
        let written = self.primary.ask("SELECT pg_current_wal_insert_lsn()").await;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        until("the standby", async || self.standby.ask(&replayed).await == "true").await;
    }
}

/// Who owns the shared server's data, and runs these servers: PostgreSQL refuses to run as root.
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    async fn of_the_shared_server() -> Self {
        let mut shared = Client::connect(&service("DATABASE_URL")).await;
        let data = shared.ask("SELECT current_setting('data_directory')").await;
        let metadata = std::fs::metadata(data).expect("the data of the shared server");
        Self { user: metadata.uid(), group: metadata.gid() }
    }

    /// A folder of this owner's.
    fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        self.give(folder.path());
        folder
    }

    fn give(&self, path: &Path) {
        chown(path, Some(self.user), Some(self.group)).expect("the shared server's owner");
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(Path::new(&service("POSTGRES_BIN")).join(name));
        command.uid(self.user).gid(self.group).current_dir("/");
        command
    }
}

fn run(command: &mut Command) {
    let done = command.output().expect("it runs");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

struct Server {
    port: u16,
    process: Child,
}

impl Server {
    /// Starts a server on this data, and waits until it takes connections.
    async fn start(owner: &Owner, data: PathBuf, settings: &[&str]) -> Self {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let log = data.with_extension("log");
        let output = File::create(&log).expect("a file");
        let mut command = owner.program("postgres");
        command.arg("-D").arg(&data).args(["-c", &format!("port={port}")]);
        for setting in SETTINGS.iter().chain(settings) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let mut server = Self { port, process: command.spawn().expect("PostgreSQL runs") };
        loop {
            let said = std::fs::read_to_string(&log).expect("its log");
            if said.contains("ready to accept") {
                return server;
            }
            let ended = server.process.try_wait().expect("its state");
            assert!(ended.is_none(), "PostgreSQL did not start: {said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn stores(&self) -> Stores {
        let database_url = format!(
            "postgres://postgres:{PASSWORD}@127.0.0.1:{}/postgres?sslmode=disable",
            self.port
        );
        Stores { database_url, bucket: String::new() }
    }
}

impl Drop for Server {
    /// At once, without a shutdown: nobody needs the data any more.
    fn drop(&mut self) {
        let pid = self.process.id().to_string();
        let told = Command::new("kill").args(["-s", "QUIT", &pid]).status();
        if told.is_ok_and(|told| told.success()) {
            // An error would hide why the test ended.
            let _ = self.process.wait();
        }
    }
}
