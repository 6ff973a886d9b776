//! S3's answers, by the code in the body or the status, and the want of one. Pure.

use super::Consequence::{self, Fatal, Retry};
use super::{Cause, Said};

/// What to do about an S3 that does not answer.
pub const REACH_S3: &str =
    "check the route to S3 (a VPC needs its gateway endpoint or NAT), and AWS_ENDPOINT_URL";

const ANOTHER_REGION: Said =
    Said("it is in another region than AWS_REGION", "set AWS_REGION to the bucket's region");
const CREDENTIALS: Said = Said(
    "S3 does not accept the AWS credentials",
    "renew them, and check that they are of the bucket's account",
);
const MAY_NOT_WRITE: Said = Said(
    "S3 refuses the role access",
    "the role needs s3:PutObject, s3:GetObject and s3:PutObjectTagging on the prefix, and the \
        key's kms:GenerateDataKey and kms:Decrypt",
);
const MAY_NOT_HEAD: Said = Said(
    "S3 refuses the role access",
    "the role needs s3:GetObject on the prefix, and s3:ListBucket on the bucket (without it a \
        missing object is a 403); or S3 does not accept the credentials, or this machine's clock is wrong",
);
const MAY_NOT_READ: Said = Said(
    "S3 refuses the role access",
    "the role needs s3:GetObject on the prefix, and s3:ListBucket on the bucket (without it a \
        missing object is a 403)",
);
const KMS: Said = Said(
    "the bucket's KMS key cannot be used",
    "enable it, and allow the role kms:GenerateDataKey and kms:Decrypt",
);

/// By the code in the body of S3's answer (Amazon S3 API Reference, "Error responses"). An answer
/// to HEAD has no body.
const S3_CODES: &[(&str, Consequence, Said)] = &[
    ("AuthorizationHeaderMalformed", Fatal, ANOTHER_REGION),
    ("IllegalLocationConstraintException", Fatal, ANOTHER_REGION),
    ("PermanentRedirect", Fatal, ANOTHER_REGION),
    // While the name of a bucket that was made within the hour spreads.
    (
        "TemporaryRedirect",
        Retry,
        Said("S3 is still spreading the name of a new bucket", "wait: this passes"),
    ),
    (
        "NoSuchBucket",
        Fatal,
        Said("it does not exist", "correct ARCHIVE_BUCKET, or create the bucket"),
    ),
    ("InvalidBucketName", Fatal, Said("it is not a bucket's name", "correct ARCHIVE_BUCKET")),
    ("AllAccessDisabled", Fatal, Said("S3 has disabled all access to it", "ask AWS")),
    (
        "NotImplemented",
        Fatal,
        Said(
            "this S3 does not know conditional writes",
            "name a bucket of AWS, or of an S3 that knows them",
        ),
    ),
    (
        "RequestTimeTooSkewed",
        Retry,
        Said("this machine's clock is wrong by more than 15 minutes", "set it"),
    ),
    ("AccessDenied", Retry, MAY_NOT_WRITE),
    ("ExpiredToken", Retry, CREDENTIALS),
    ("InvalidToken", Retry, CREDENTIALS),
    ("InvalidAccessKeyId", Retry, CREDENTIALS),
    ("SignatureDoesNotMatch", Retry, CREDENTIALS),
    ("KMS.", Retry, KMS),
    ("SlowDown", Retry, Said("S3 asks to slow down", "")),
];

/// By the status of S3's answer, where its code says nothing.
const S3_STATUSES: &[(u16, Consequence, Said)] = &[
    (301, Fatal, ANOTHER_REGION),
    (307, Retry, Said("S3 is still spreading the name of a new bucket", "wait: this passes")),
    (403, Retry, MAY_NOT_WRITE),
    (
        501,
        Fatal,
        Said(
            "this S3 does not know conditional writes",
            "name a bucket of AWS, or of an S3 that knows them",
        ),
    ),
    (503, Retry, Said("S3 asks to slow down, or is away", "")),
];

/// What an answer of S3 to `operation` (HEAD, GET or PUT) comes to.
pub(crate) fn of_s3(operation: &str, status: Option<u16>, code: Option<&str>) -> Cause {
    let Some(status) = status else {
        return Cause::new(Retry, Said("S3 cannot be reached", REACH_S3));
    };
    let code = code.unwrap_or_default();
    let known = |known: &str| code == known || (known.ends_with('.') && code.starts_with(known));
    let by_code = S3_CODES.iter().find(|(code, ..)| known(code));
    let by_status = S3_STATUSES.iter().find(|(known, ..)| *known == status);
    // A GET or a HEAD is refused for want of another right than a PUT.
    let denied = by_code.map_or(status == 403, |(code, ..)| *code == "AccessDenied");
    if denied && operation != "PUT" {
        return Cause::new(Retry, if by_code.is_some() { MAY_NOT_READ } else { MAY_NOT_HEAD });
    }
    let of_code = by_code.map(|(_, consequence, message)| (*consequence, *message));
    let of_status = by_status.map(|(_, consequence, message)| (*consequence, *message));
    let (consequence, message) = of_code.or(of_status).unwrap_or((Retry, Said("S3 refuses", "")));
    Cause::new(consequence, message)
}

#[cfg(test)]
mod tests {
    use super::Consequence::{self, Fatal, Retry};
    use super::{S3_CODES, S3_STATUSES, Said, of_s3};

    /// Whoever has to correct something is told what.
    #[test]
    fn what_is_fatal_has_a_remedy() {
        for (code, consequence, Said(what, remedy)) in S3_CODES {
            assert!(*consequence != Fatal || !remedy.is_empty(), "{code}: {what}");
        }
    }

    const ANSWERS: &[(u16, &str, Consequence, &str)] = &[
        (301, "", Fatal, "AWS_REGION"),
        (301, "PermanentRedirect", Fatal, "AWS_REGION"),
        (307, "", Retry, "passes"),
        (307, "TemporaryRedirect", Retry, "passes"),
        (400, "AuthorizationHeaderMalformed", Fatal, "AWS_REGION"),
        (400, "IllegalLocationConstraintException", Fatal, "AWS_REGION"),
        (400, "InvalidBucketName", Fatal, "not a bucket's name"),
        (400, "ExpiredToken", Retry, "credentials"),
        (400, "InvalidToken", Retry, "credentials"),
        (400, "KMS.DisabledException", Retry, "KMS key"),
        (400, "RequestTimeout", Retry, "S3 refuses"),
        (403, "", Retry, "s3:PutObject"),
        (403, "AccessDenied", Retry, "s3:PutObject"),
        (403, "AllAccessDisabled", Fatal, "ask AWS"),
        (403, "InvalidAccessKeyId", Retry, "credentials"),
        (403, "RequestTimeTooSkewed", Retry, "clock"),
        (403, "SignatureDoesNotMatch", Retry, "credentials"),
        (404, "NoSuchBucket", Fatal, "does not exist"),
        (500, "InternalError", Retry, "S3 refuses"),
        (501, "", Fatal, "conditional writes"),
        (501, "NotImplemented", Fatal, "conditional writes"),
        (503, "", Retry, "slow down"),
        (503, "SlowDown", Retry, "slow down"),
    ];

    #[test]
    fn every_answer_of_s3_comes_to_its_consequence_and_says_what_to_do() {
        for (status, code, consequence, says) in ANSWERS {
            let cause = of_s3("PUT", Some(*status), (!code.is_empty()).then_some(code));
            assert_eq!(cause.consequence, *consequence, "{status} {code}");
            assert!(cause.message.to_string().contains(says), "{status} {code}: {}", cause.message);
        }
        for (known, ..) in S3_CODES {
            assert!(
                ANSWERS.iter().any(|(_, code, ..)| code.starts_with(known)),
                "{known} has no test"
            );
        }
        for (known, ..) in S3_STATUSES {
            assert!(
                ANSWERS.iter().any(|(status, code, ..)| status == known && code.is_empty()),
                "{known} has no test"
            );
        }
        assert_eq!(of_s3("PUT", None, None).message.remedy.as_deref(), Some(super::REACH_S3));
        for refused in [Some("AccessDenied"), None] {
            assert!(
                of_s3("HEAD", Some(403), refused).message.to_string().contains("s3:ListBucket")
            );
        }
    }
}
