//! IAM authentication tokens for RDS: a presigned URL, used as the password.
//!
//! What `aws rds generate-db-auth-token` prints; signed here, because the RDS client that offers
//! the same is by far the largest of the SDK's crates.

use std::error::Error;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign as sigv4,
};
use aws_sigv4::sign::v4;

/// How long a token may be used to connect (Amazon RDS User Guide, "IAM database authentication").
const LIFETIME: Duration = Duration::from_mins(15);

/// The token with which `user` may connect to `host:port` for the next 15 minutes.
///
/// # Errors
/// Where the parts cannot be made into a URL that can be signed.
pub(crate) fn sign(
    host: &str,
    port: u16,
    user: &str,
    region: &str,
    credentials: Credentials,
    now: SystemTime,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(LIFETIME);
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()?;
    let mut url = url::Url::parse(&format!("https://{host}:{port}/"))?;
    url.query_pairs_mut().append_pair("Action", "connect").append_pair("DBUser", user);
    let request =
        SignableRequest::new("GET", url.as_str(), std::iter::empty(), SignableBody::Bytes(b""))?;
    let (instructions, _signature) = sigv4(request, &parameters.into())?.into_parts();
    for (name, value) in instructions.params() {
        url.query_pairs_mut().append_pair(name, value);
    }
    Ok(url.as_str().trim_start_matches("https://").to_owned())
}

#[cfg(test)]
mod tests {
    use super::sign;
    use aws_credential_types::Credentials;
    use std::time::{Duration, UNIX_EPOCH};

    /// The expected token is what botocore 1.43 makes of the same input.
    #[test]
    fn the_token_is_the_one_that_the_aws_cli_makes() {
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            Some("session/token+x=".to_owned()),
            None,
            "test",
        );
        let now = UNIX_EPOCH + Duration::from_secs(1_795_435_705);
        let host = "db.example.eu-central-1.rds.amazonaws.com";
        let token =
            sign(host, 5432, "projector+x", "eu-central-1", credentials, now).expect("a token");
        let (given_host, query) = token.split_once("/?").expect("a query");
        assert_eq!(given_host, format!("{host}:5432"));
        let mut parameters: Vec<&str> = query.split('&').collect();
        parameters.sort_unstable();
        assert_eq!(
            parameters,
            [
                "Action=connect",
                "DBUser=projector%2Bx",
                "X-Amz-Algorithm=AWS4-HMAC-SHA256",
                "X-Amz-Credential=AKIDEXAMPLE%2F20261123%2Feu-central-1%2Frds-db%2Faws4_request",
                "X-Amz-Date=20261123T120825Z",
                "X-Amz-Expires=900",
                "X-Amz-Security-Token=session%2Ftoken%2Bx%3D",
                "X-Amz-Signature=8e062fea8164ea60c0215c03a56791604a36d73d68b866bcc774c4cd281de1f9",
                "X-Amz-SignedHeaders=host",
            ]
        );
    }
}
