//! What the roles of the stacks may do: what is needed, and no more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use super::{TEMPLATES, list, resources, template, walk};

/// Every statement of every policy, with its template's name; of a choice between two, both.
fn statements() -> Vec<(&'static str, Json)> {
    let mut found = Vec::new();
    for name in TEMPLATES {
        walk(&template(name)["Resources"], &mut |value| {
            let statements = value["Statement"].as_array().into_iter().flatten();
            let chosen = statements.flat_map(|statement| match statement["Fn::If"].as_array() {
                Some(choice) => choice[1..].iter().collect(),
                None => vec![statement],
            });
            let chosen = chosen.filter(|statement| **statement != json!({ "Ref": "AWS::NoValue" }));
            found.extend(chosen.map(|statement| (name, statement.clone())));
        });
    }
    found
}

/// Whether an action concerns no resource that has an ARN before it is called.
fn has_no_arn(action: &str) -> bool {
    // Alarms have ARNs, but CloudWatch answers in full only whoever may ask for all.
    const WITHOUT: [&str; 3] =
        ["cloudwatch:DescribeAlarms", "ecr:GetAuthorizationToken", "route53:ListHostedZones"];
    action.starts_with("ec2:") || WITHOUT.contains(&action)
}

#[test]
fn no_policy_has_a_star_where_an_arn_is_known() {
    for (name, statement) in statements() {
        assert!(statement["Effect"].is_string(), "{name}: {statement}");
        let actions: Vec<&str> =
            list(&statement["Action"]).into_iter().filter_map(Json::as_str).collect();
        let tls_only = statement["Sid"] == "TlsOnly" && statement["Effect"] == "Deny";
        for action in &actions {
            assert!(!action.contains('*') || tls_only, "{name}: {action}");
        }
        for resource in list(&statement["Resource"]) {
            if resource == "*" {
                assert!(actions.iter().all(|action| has_no_arn(action)), "{name}: {statement}");
            }
        }
        if statement["Effect"] == "Allow" {
            assert_ne!(statement["Principal"], "*", "{name}: {statement}");
        }
    }
    for (place, role) in resources("AWS::IAM::Role") {
        // Those of AWS are wider than what is needed.
        assert!(role["Properties"].get("ManagedPolicyArns").is_none(), "{place}");
    }
}

/// What a role of a template may do: each statement by the name of its policy and by its action.
pub(super) fn allowed(template: &Json, role: &str) -> BTreeMap<(String, String), Json> {
    let mut allowed = BTreeMap::new();
    walk(&template["Resources"][role]["Properties"]["Policies"], &mut |value| {
        let Some(name) = value["PolicyName"].as_str() else { return };
        for statement in value["PolicyDocument"]["Statement"].as_array().into_iter().flatten() {
            if statement["Effect"] == "Allow" {
                for action in list(&statement["Action"]) {
                    let key = (name.to_owned(), action.as_str().expect("an action").to_owned());
                    let before = allowed.insert(key, statement.clone());
                    assert!(before.is_none(), "{role}: {name} allows {action} twice");
                }
            }
        }
    });
    allowed
}

#[test]
fn the_role_may_do_what_the_projector_does_and_no_more() {
    let allowed = allowed(template("projector"), "Role");
    let got: BTreeSet<(&str, &str)> =
        allowed.keys().map(|(policy, action)| (policy.as_str(), action.as_str())).collect();
    let expected = [
        ("archive", "s3:GetObject"),
        ("archive", "s3:ListBucket"),
        ("archive", "s3:PutObject"),
        ("archive", "s3:PutObjectTagging"),
        ("archive-key", "kms:Decrypt"),
        ("archive-key", "kms:GenerateDataKey"),
        ("failures", "s3:ListBucket"),
        ("failures", "s3:PutObject"),
        ("login-by-iam", "rds-db:connect"),
        ("login-by-secret", "secretsmanager:GetSecretValue"),
        ("logs", "logs:CreateLogStream"),
        ("logs", "logs:PutLogEvents"),
        ("network", "ec2:AssignPrivateIpAddresses"),
        ("network", "ec2:CreateNetworkInterface"),
        ("network", "ec2:DeleteNetworkInterface"),
        ("network", "ec2:DescribeNetworkInterfaces"),
        ("network", "ec2:DescribeSubnets"),
        ("network", "ec2:UnassignPrivateIpAddresses"),
        ("streams", "dynamodb:DescribeStream"),
        ("streams", "dynamodb:GetRecords"),
        ("streams", "dynamodb:GetShardIterator"),
        ("streams", "dynamodb:ListStreams"),
    ];
    assert_eq!(got, BTreeSet::from(expected));
    let of = |policy: &str, action: &str| allowed[&(policy.to_owned(), action.to_owned())].clone();
    // Of each table every stream, the one from before it was turned off and on as well.
    let streams = |table: &str| {
        let import = json!({ "Fn::ImportValue": { "Fn::Sub": format!("${{DataStack}}-{table}") } });
        let arn = "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/${Table}/stream/*";
        json!({ "Fn::Sub": [arn, { "Table": import }] })
    };
    assert_eq!(
        of("streams", "dynamodb:GetRecords")["Resource"],
        json!([streams("SessionsTable"), streams("ScansTable")])
    );
    let archive = "arn:${AWS::Partition}:s3:::${ArchiveBucket}";
    assert_eq!(
        of("archive", "s3:PutObject")["Resource"],
        json!({ "Fn::Sub": format!("{archive}/${{ArchivePrefix}}*") })
    );
    let list_bucket = of("archive", "s3:ListBucket");
    assert_eq!(list_bucket["Resource"], json!({ "Fn::Sub": archive }));
    assert_eq!(
        list_bucket["Condition"],
        json!({ "StringLike": { "s3:prefix": { "Fn::Sub": "${ArchivePrefix}*" } } })
    );
    let login = of("login-by-iam", "rds-db:connect")["Resource"].to_string();
    assert!(login.contains("dbuser:${ResourceId}/${DatabaseUser}"), "{login}");
}
