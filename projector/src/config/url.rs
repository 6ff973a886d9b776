//! `DATABASE_URL`: what it may hold, and that none of it is ever shown. A password that is not
//! percent-encoded takes the URL apart in other places than its author meant, so any piece of it
//! may be a piece of the password; a library that is handed such a piece may log it.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

const ENCODE: &str = "cannot be read as a URL: percent-encode the password (@ is %40, / is %2F, ? \
    is %3F, # is %23, % is %25)";

/// What sqlx takes from the query of a URL.
const TAKEN: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];
/// What libpq takes too (PostgreSQL documentation, "Parameter Key Words"), and has no use here.
/// sqlx would log what it does not know, with its value.
const IGNORED: [&str; 22] = [
    "connect_timeout",
    "target_session_attrs",
    "channel_binding",
    "gssencmode",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "fallback_application_name",
    "client_encoding",
    "passfile",
    "load_balance_hosts",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "sslcompression",
    "ssl_min_protocol_version",
    "sslnegotiation",
];
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Reads `DATABASE_URL`: TLS is `verify-full` against the RDS roots unless the URL says otherwise.
///
/// # Errors
/// One line that says what is wrong with the URL, and nothing of the URL itself.
pub fn parse_url(text: &str) -> Result<PgConnectOptions, String> {
    let encode = || ENCODE.to_owned();
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| "does not start with postgres://".to_owned())?;
    if !matches!(scheme, "postgres" | "postgresql") {
        return Err("does not start with postgres://".to_owned());
    }
    if password_leaks(rest) {
        return Err(encode());
    }
    let mut url = Url::parse(text).map_err(|_| encode())?;
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    for (name, value) in &pairs {
        let known = TAKEN.contains(&name.as_str())
            || IGNORED.contains(&name.as_str())
            || name.starts_with("options[");
        if !known {
            return Err(format!("has a parameter that is not known, or {ENCODE}"));
        }
        if matches!(name.as_str(), "sslmode" | "ssl-mode") && !SSL_MODES.contains(&value.as_str()) {
            return Err(format!("has an sslmode that is none of {}", SSL_MODES.join(", ")));
        }
    }
    let taken: Vec<_> =
        pairs.iter().filter(|(name, _)| !IGNORED.contains(&name.as_str())).cloned().collect();
    url.set_query(None);
    if !taken.is_empty() {
        url.query_pairs_mut().extend_pairs(taken);
    }
    let options = PgConnectOptions::from_str(url.as_str()).map_err(|_| {
        "has a part that cannot be used: a port, or the value of a parameter".to_owned()
    })?;
    let says = |names: &[&str]| pairs.iter().any(|(name, _)| names.contains(&name.as_str()));
    Ok(secured(
        options,
        says(&["sslmode", "ssl-mode"]),
        says(&["sslrootcert", "ssl-root-cert", "ssl-ca"]),
    ))
}

/// Whether the text behind `postgres://` looks as if a password with `/`, `?`, `#` or `@` had cut
/// it in the wrong place.
fn password_leaks(rest: &str) -> bool {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let path = rest.split('?').next().unwrap_or_default();
    authority.matches('@').count() > 1
        || rest.contains('#')
        || path.contains('@')
        || (rest.contains('@') && !authority.contains('@'))
}

/// What every connection of ours has, whoever named the host.
pub(crate) fn secured(
    mut options: PgConnectOptions,
    mode_given: bool,
    roots_given: bool,
) -> PgConnectOptions {
    if !mode_given {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    match rds_roots() {
        Some(roots) if !roots_given => options.ssl_root_cert(roots),
        _ => options,
    }
    .application_name("projector")
    // We send no floats, and PgBouncer refuses a client that sets this.
    .extra_float_digits(None)
    .disable_statement_logging()
}

/// The RDS root certificates, `rds-roots.pem` beside the executable, where the build puts them.
/// Without them only the public roots are trusted (RDS Proxy's certificates are signed by those).
fn rds_roots() -> Option<PathBuf> {
    let roots =
        std::env::current_exe().ok()?.parent().map(Path::to_path_buf)?.join("rds-roots.pem");
    roots.exists().then_some(roots)
}

#[cfg(test)]
mod tests {
    use super::parse_url;

    #[test]
    fn a_password_that_is_not_percent_encoded_is_refused_and_not_shown() {
        for password in
            ["hun?ter", "hun/ter", "hun#ter", "hun@ter", "12?ter", "12/ter", "12#ter", "h@n?t=r"]
        {
            let url =
                format!("postgres://projector:{password}@db.example:5432/feet?sslmode=require");
            let problem = parse_url(&url).expect_err(password);
            assert!(problem.contains("percent-encode the password"), "{password}: {problem}");
            for piece in ["hun", "db.example", "feet", "12", "t=r", "?ter", "/ter"] {
                assert!(!problem.contains(piece), "{password}: {problem}");
            }
        }
    }

    #[test]
    fn a_password_that_is_percent_encoded_is_taken() {
        let url = "postgres://projector:h%40%2F%3F%23n@db.example/feet?sslrootcert=/etc/a@b.pem";
        let options = parse_url(url).expect("a URL");
        assert_eq!((options.get_host(), options.get_database()), ("db.example", Some("feet")));
    }

    #[test]
    fn what_libpq_knows_is_taken_and_what_nobody_knows_is_not() {
        let base = "postgres://u:p@h/d";
        assert!(parse_url(&format!("{base}?connect_timeout=5&application_name=x")).is_ok());
        assert!(
            parse_url(&format!("{base}?secret=1"))
                .is_err_and(|problem| !problem.contains("secret"))
        );
        let problem = parse_url(&format!("{base}?sslmode=hunter2")).expect_err("no mode");
        assert!(problem.contains("verify-full") && !problem.contains("hunter2"), "{problem}");
        assert!(
            parse_url(&format!("{base}?port=hunter2"))
                .is_err_and(|problem| !problem.contains("hunter2"))
        );
        assert_eq!(parse_url("mysql://h/d").expect_err("no"), "does not start with postgres://");
    }
}
