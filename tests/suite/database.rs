//! Connecting: TLS that is verified, and passwords that come from Secrets Manager.

use std::collections::BTreeSet;

use projector::config::{self, DatabaseConfig, Login};
use projector::database::Database;
use projector::deadline::Deadline;
use projector::measurement::{COLUMNS, ColumnKind};
use projector::part::Part;
use serde_json::json;
use testkit::gates::tls_before_postgres;
use testkit::records::{LABEL, session};
use testkit::services::{Stores, apply, aws, service};

#[tokio::test]
async fn tls_is_verified_in_full_by_default() {
    let stores = Stores::fresh().await;
    let (address, authority) = tls_before_postgres(stores.database_host()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, authority).expect("the roots");
    let bare = stores.database_url.split('?').next().expect("a URL");
    let by_address = bare.replace(&stores.database_host(), &address.to_string());
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let record = [session("s1", "u").place(LABEL, 1)];
    let refused = async |url: &str| {
        let projector = stores.projector_without_archive(url, 1);
        let error = projector.database.connect().await.expect_err("not trusted");
        assert!(
            error.to_string().starts_with("cannot agree on TLS"),
            "{}",
            projector::error::chain(&error)
        );
        projector::error::chain(&error)
    };
    let trusted = format!("sslrootcert={}", roots.display());

    // Nobody vouches for the certificate; somebody does, but for another name; the server has no
    // TLS.
    assert!(refused(&by_name).await.contains("UnknownIssuer"));
    assert!(refused(&format!("{by_address}?{trusted}")).await.contains("not valid for name"));
    assert!(refused(bare).await.contains("does not support TLS"));

    apply(&stores.projector_without_archive(&format!("{by_name}?{trusted}"), 1), &record).await;
    assert_eq!(stores.rows().await.len(), 1);
}

#[tokio::test]
async fn a_password_comes_from_secrets_manager_anew_for_each_connection() {
    let stores = Stores::fresh().await;
    let url = stores.database_url.clone();
    let role = format!("secret_{:08x}", fastrand::u32(..));
    let rotate = async |password: &str, new: bool| {
        let verb = if new { "CREATE" } else { "ALTER" };
        let sql = format!("{verb} ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'");
        stores.change(&sql).await;
    };
    rotate("first", true).await;
    let endpoint = service("AWS_ENDPOINT_URL");
    let secrets = aws_sdk_secretsmanager::Client::new(&aws(&endpoint).await);
    let options = config::parse_url(&url).expect("a URL");
    // The secret names the host of another day; the URL is what counts.
    let secret = |password: &str| {
        json!({
            "engine": "postgres", "username": role, "password": password, "host": "old-database.invalid",
            "port": 1, "dbname": "old",
        })
        .to_string()
    };
    let created =
        secrets.create_secret().name(&stores.bucket).secret_string(secret("first")).send().await;
    let arn = created.expect("a secret").arn.expect("an ARN");
    let config =
        DatabaseConfig { url: Some(options), login: Login::Secret(arn.clone()), connections: 1 };
    let mut projector = stores.projector_without_archive(&url, 1);
    projector.database = Database::new(config, Some(aws(&endpoint).await));
    apply(&projector, &[session("s1", "u").place(LABEL, 1)]).await;

    rotate("second", false).await;
    // For the seconds of a rotation the secret still has the old password: that passes, and stops
    // nothing.
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    assert_eq!(stores.ask(&kill).await, "1");
    let record = session("s2", "u").place(LABEL, 2);
    let json = [record.json.as_bytes()];
    let applied = projector.apply(&json, Deadline::NONE).await.expect("no fatal error");
    assert_eq!(applied.failed, [0]);
    secrets
        .put_secret_value()
        .secret_id(&arn)
        .secret_string(secret("second"))
        .send()
        .await
        .expect("rotated");
    apply(&projector, &[record]).await;
    assert_eq!(stores.rows().await.len(), 2);
}

#[tokio::test]
async fn a_secret_that_names_no_host_needs_the_url_and_says_so() {
    let stores = Stores::unmigrated().await;
    let endpoint = service("AWS_ENDPOINT_URL");
    let secrets = aws_sdk_secretsmanager::Client::new(&aws(&endpoint).await);
    let master = json!({ "username": "u", "password": "p" }).to_string();
    let created = secrets.create_secret().name(&stores.bucket).secret_string(master).send().await;
    let arn = created.expect("a secret").arn.expect("an ARN");
    let config = DatabaseConfig { url: None, login: Login::Secret(arn.clone()), connections: 1 };
    let database = Database::new(config, Some(aws(&endpoint).await));
    let error = database.connect().await.expect_err("nowhere to connect to").to_string();
    assert_eq!(
        error,
        format!(
            "cannot get the database's credentials from {arn}: the secret has no host: set DATABASE_URL"
        )
    );
}

#[tokio::test]
async fn the_migrations_run_twice_and_the_schema_is_the_contracts() {
    let stores = Stores::fresh().await;
    stores.migrate().await;
    let types = "SELECT string_agg(column_name || ' ' || data_type || coalesce(' ' || \
                 collation_name, ''), E'\\n' ORDER BY ordinal_position) FROM \
                 information_schema.columns WHERE table_name = 'measurements'";
    let columns = stores.ask(types).await;
    let of_an_attribute = COLUMNS.iter().map(|column| {
        let kind = match column.kind {
            ColumnKind::Text => "text",
            ColumnKind::Timestamp => "timestamp with time zone",
            ColumnKind::Millimetres => "numeric",
            ColumnKind::Bytes => "bytea",
            ColumnKind::Attributes => "json",
        };
        format!("{} {kind}", column.name)
    });
    let of_a_part = Part::ALL.iter().flat_map(|part| {
        let name = part.name();
        [format!("{name}_version text C"), format!("{name}_changed_at timestamp with time zone")]
    });
    let own = ["session_id text C", "complete boolean"].map(str::to_owned);
    let expected: BTreeSet<String> = of_an_attribute.chain(of_a_part).chain(own).collect();
    let found: BTreeSet<String> = columns.lines().map(str::to_owned).collect();
    assert_eq!(found, expected, "left: what the migrations make; right: the list of columns");
}
