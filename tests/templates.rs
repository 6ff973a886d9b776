//! What the templates of `infra/` say. Both linters pass nonsense here and there; what a deployment would show
//! only in an account of its own is read off the templates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use projector::config;
use serde_json::{Value as Json, json};
use support::emulator::{Lambda, event};
use support::records::{LABEL, session};
use support::services::Stores;

const TEMPLATES: [&str; 6] =
    ["data", "database", "existing-database", "archive", "projector", "alarms"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// All templates and `samconfig.toml`, as AWS's own tools read them: `!Ref x` is `{"Ref": "x"}`.
static FILES: LazyLock<Json> = LazyLock::new(|| {
    let script = "import json, pathlib, sys, tomlkit
from samcli.yamlhelper import yaml_parse
def read(path):
    text = pathlib.Path(path).read_text()
    return tomlkit.parse(text).unwrap() if path.endswith('.toml') else yaml_parse(text)
print(json.dumps({path: read(path) for path in sys.argv[1:]}))";
    let sam = Command::new("sh").args(["-c", "command -v sam"]).output().expect("a shell").stdout;
    let sam = String::from_utf8(sam).expect("a path");
    assert!(
        !sam.is_empty(),
        "sam is not on the PATH: run this with `make test` or `scripts/with-services --with-sam`"
    );
    let output = Command::new(Path::new(sam.trim()).with_file_name("python"))
        .args(["-c", script, "samconfig.toml"])
        .args(TEMPLATES.map(|name| format!("infra/{name}.yaml")))
        .current_dir(root())
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
});

fn template(name: &str) -> &'static Json {
    &FILES[format!("infra/{name}.yaml")]
}

fn members(value: &Json) -> impl Iterator<Item = (&str, &Json)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn names(value: &Json) -> BTreeSet<&str> {
    members(value).map(|(name, _)| name).collect()
}

/// The resources of a type, with the name of their template and their own.
fn resources(kind: &str) -> Vec<(String, Json)> {
    let mut found = Vec::new();
    for name in TEMPLATES {
        for (id, resource) in members(&template(name)["Resources"]) {
            if resource["Type"] == kind {
                found.push((format!("{name}.{id}"), resource.clone()));
            }
        }
    }
    assert!(!found.is_empty(), "no {kind}");
    found
}

/// Every value at any depth.
fn walk<'a>(value: &'a Json, visit: &mut impl FnMut(&'a Json)) {
    visit(value);
    match value {
        Json::Array(values) => values.iter().for_each(|value| walk(value, visit)),
        Json::Object(values) => values.values().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

/// Every statement of every policy, with its template's name.
fn statements() -> Vec<(&'static str, Json)> {
    let mut found = Vec::new();
    for name in TEMPLATES {
        walk(&template(name)["Resources"], &mut |value| {
            if let Some(statements) = value["Statement"].as_array() {
                found.extend(statements.iter().map(|statement| (name, statement.clone())));
            }
        });
    }
    found
}

fn list(value: &Json) -> Vec<&Json> {
    value.as_array().map_or_else(|| vec![value], |values| values.iter().collect())
}

#[test]
fn every_parameter_says_what_it_is_and_what_it_takes() {
    for name in TEMPLATES {
        for (parameter, definition) in members(&template(name)["Parameters"]) {
            let place = format!("{name}.{parameter}");
            let description = definition["Description"].as_str().unwrap_or_default();
            assert!(description.len() > 8, "{place} has no description");
            let kind = definition["Type"].as_str().expect("a type");
            let bounded = ["AllowedPattern", "AllowedValues", "MinValue"]
                .iter()
                .any(|bound| definition.get(*bound).is_some());
            assert!(bounded || kind.contains("AWS::EC2::"), "{place} takes anything");
        }
        for (output, definition) in members(&template(name)["Outputs"]) {
            assert!(definition["Description"].is_string(), "{name}.{output} has no description");
        }
    }
}

#[test]
fn every_mapping_has_its_failure_settings() {
    let mappings = resources("AWS::Lambda::EventSourceMapping");
    assert_eq!(mappings.len(), 2);
    for (place, mapping) in &mappings {
        let properties = &mapping["Properties"];
        let expected = json!({
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "BisectBatchOnFunctionError": true,
            "MaximumRetryAttempts": { "Ref": "MaximumRetryAttempts" },
            "MaximumRecordAgeInSeconds": { "Ref": "MaximumRecordAgeSeconds" },
            "DestinationConfig": { "OnFailure": { "Destination": { "Fn::GetAtt": ["FailureBucket", "Arn"] } } },
            "ParallelizationFactor": { "Ref": "ParallelizationFactor" },
            "BatchSize": { "Ref": "BatchSize" },
            "MaximumBatchingWindowInSeconds": { "Ref": "BatchingWindowSeconds" },
            "StartingPosition": { "Ref": "StartingPosition" },
        });
        for (name, value) in members(&expected) {
            assert_eq!(&properties[name], value, "{place}.{name}");
        }
    }
    // The linters do not look into these.
    for (place, function) in resources("AWS::Serverless::Function") {
        assert!(function["Properties"].get("Events").is_none(), "{place} has SAM events");
    }
    let parameters = &template("projector")["Parameters"];
    // A retry that never ends would hold a shard for a day, and a replay is older than any age.
    assert!(parameters["MaximumRetryAttempts"]["MinValue"].as_i64() >= Some(1));
    assert!(parameters["MaximumRetryAttempts"]["Default"].as_i64() >= Some(1));
    assert_eq!(parameters["MaximumRecordAgeSeconds"]["Default"], -1);
    // Whoever makes a mapping says where it begins.
    assert!(parameters["StartingPosition"].get("Default").is_none());
    assert_eq!(parameters["Mappings"]["Default"], "absent");
}

#[test]
fn no_policy_has_a_star_where_an_arn_is_known() {
    let network = "ec2:";
    for (name, statement) in statements() {
        let actions: Vec<&str> =
            list(&statement["Action"]).into_iter().filter_map(Json::as_str).collect();
        let tls_only = statement["Sid"] == "TlsOnly" && statement["Effect"] == "Deny";
        for action in &actions {
            assert!(!action.contains('*') || tls_only, "{name}: {action}");
        }
        for resource in list(&statement["Resource"]) {
            if resource == "*" {
                assert!(
                    actions.iter().all(|action| action.starts_with(network)),
                    "{name}: {statement}"
                );
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

#[test]
fn the_role_may_do_what_the_projector_does_and_no_more() {
    let template = template("projector");
    let mut allowed = BTreeMap::new();
    walk(&template["Resources"]["Role"]["Properties"]["Policies"], &mut |value| {
        let Some(name) = value["PolicyName"].as_str() else { return };
        for statement in value["PolicyDocument"]["Statement"].as_array().into_iter().flatten() {
            if statement["Effect"] == "Allow" {
                for action in list(&statement["Action"]) {
                    let action = action.as_str().expect("an action").to_owned();
                    allowed.insert((name.to_owned(), action), statement.clone());
                }
            }
        }
    });
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
    let import = |suffix: &str| json!({ "Fn::ImportValue": { "Fn::Sub": format!("${{DataStack}}-{suffix}") } });
    assert_eq!(
        of("streams", "dynamodb:GetRecords")["Resource"],
        json!([import("SessionsStreamArn"), import("ScansStreamArn")])
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

#[test]
fn what_holds_data_is_retained() {
    let stateful = [
        "AWS::DynamoDB::Table",
        "AWS::RDS::DBInstance",
        "AWS::S3::Bucket",
        "AWS::SecretsManager::Secret",
        "AWS::Logs::LogGroup",
    ];
    for kind in stateful {
        for (place, resource) in resources(kind) {
            assert_eq!(resource["DeletionPolicy"], "Retain", "{place}");
            assert_eq!(resource["UpdateReplacePolicy"], "Retain", "{place}");
        }
    }
    for (place, bucket) in resources("AWS::S3::Bucket") {
        let properties = &bucket["Properties"];
        assert!(properties["BucketEncryption"].is_object(), "{place}");
        let blocked = &properties["PublicAccessBlockConfiguration"];
        assert!(
            names(blocked).len() == 4 && members(blocked).all(|(_, value)| value == true),
            "{place}"
        );
    }
    assert_eq!(resources("AWS::S3::Bucket").len(), resources("AWS::S3::BucketPolicy").len());
    for (place, policy) in resources("AWS::S3::BucketPolicy") {
        let statement = &policy["Properties"]["PolicyDocument"]["Statement"][0];
        let refused = json!({ "Bool": { "aws:SecureTransport": "false" } });
        assert_eq!(
            (&statement["Effect"], &statement["Condition"]),
            (&json!("Deny"), &refused),
            "{place}"
        );
    }
    for (place, table) in resources("AWS::DynamoDB::Table") {
        let properties = &table["Properties"];
        assert_eq!(
            properties["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], true,
            "{place}"
        );
        assert_eq!(properties["DeletionProtectionEnabled"], true, "{place}");
        // A static name: an update that would replace the table is refused, for the name is taken.
        assert!(properties["TableName"]["Ref"].is_string(), "{place}");
    }
    let views = &template("data")["Parameters"]["StreamViewType"]["AllowedValues"];
    assert_eq!(views, &json!(["NEW_IMAGE", "NEW_AND_OLD_IMAGES"]));
}

/// Without it, at any later deployment, `CloudFormation` makes an empty database in place of the restored one.
#[test]
fn the_snapshot_of_the_database_cannot_be_left_out() {
    let template = template("database");
    let database = &template["Resources"]["Database"]["Properties"];
    assert_eq!(database["DBSnapshotIdentifier"], json!({ "Ref": "SnapshotIdentifier" }));
    let parameter = &template["Parameters"]["SnapshotIdentifier"];
    assert!(parameter.get("Default").is_none());
    let pattern = parameter["AllowedPattern"].as_str().expect("a pattern");
    assert!(!matches(pattern, ""), "the empty text makes an empty database");
    for identifier in [
        "before-the-move",
        "rds:measurements-2026-11-23-03-05",
        "arn:aws:rds:eu-central-1:123456789012:snapshot:before-the-move",
    ] {
        assert!(matches(pattern, identifier), "{identifier}");
    }
    assert!(parameter["Description"].as_str().is_some_and(|text| text.contains("NEVER change it")));
    // What CloudFormation refuses next to a snapshot (AWS::RDS::DBInstance, DBSnapshotIdentifier).
    for refused in
        ["DBName", "KmsKeyId", "MasterUsername", "MasterUserPassword", "StorageEncrypted"]
    {
        assert!(database.get(refused).is_none(), "{refused}");
    }
    for required in ["DeletionProtection", "EnableIAMDatabaseAuthentication", "CopyTagsToSnapshot"]
    {
        assert_eq!(database[required], true, "{required}");
    }
    assert_eq!(database["PubliclyAccessible"], false);
}

#[test]
fn the_variables_are_those_that_the_projector_reads() {
    let template = template("projector");
    let variables = &template["Resources"]["Function"]["Properties"]["Environment"]["Variables"];
    let mut read: BTreeSet<&str> = config::VARIABLES.into_iter().collect();
    read.insert("RUST_LOG");
    assert_eq!(names(variables), read);
    let function = &template["Resources"]["Function"]["Properties"];
    assert_eq!(function["Runtime"], "provided.al2023");
    assert_eq!(function["Handler"], "bootstrap");
    assert_eq!(function["CodeUri"], "../target/lambda/projector/bootstrap.zip");
    assert!(
        function["Timeout"].as_i64() >= Some(180),
        "it waits 10 s, 25 s and 30 s, and a slow statement is tried again in pieces"
    );
    assert_eq!(function["ReservedConcurrentExecutions"], json!({ "Ref": "ReservedConcurrency" }));
    // The one is refused beside the other.
    assert_eq!(variables["DATABASE_AUTH"]["Fn::If"][0], "ByIam");
    assert_eq!(variables["DATABASE_SECRET_ARN"]["Fn::If"][0], "BySecret");
}

/// What an AWS service emits under which dimensions, from its documentation.
fn emitted_by_aws() -> BTreeSet<(String, String, Vec<String>)> {
    let function = ["FunctionName"].as_slice();
    [
        ("AWS/Lambda", "IteratorAge", function),
        ("AWS/Lambda", "Invocations", function),
        ("AWS/Lambda", "Errors", function),
        ("AWS/Lambda", "Throttles", function),
        ("AWS/Lambda", "DestinationDeliveryFailures", function),
        ("AWS/S3", "PutRequests", &["BucketName", "FilterId"]),
        ("AWS/S3", "NumberOfObjects", &["BucketName", "StorageType"]),
        ("AWS/RDS", "DatabaseConnections", &["DBInstanceIdentifier"]),
        ("AWS/RDS", "CPUUtilization", &["DBInstanceIdentifier"]),
        ("AWS/DynamoDB", "ConsumedWriteCapacityUnits", &["TableName"]),
    ]
    .into_iter()
    .map(|(namespace, metric, dimensions)| {
        let dimensions = dimensions.iter().map(ToString::to_string).collect();
        (namespace.to_owned(), metric.to_owned(), dimensions)
    })
    .collect()
}

/// What the binary emits, from a batch that it applied.
async fn emitted_by_the_projector() -> BTreeSet<(String, String, Vec<String>)> {
    let stores = Stores::fresh().await;
    let lambda = Lambda::start(&[("DATABASE_URL", &stores.database_url)]).await;
    lambda.invoke(&event([session("s1", "u1").place(LABEL, 1).json.as_str()])).await;
    let log = lambda.log();
    let line = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Json>(line).ok())
        .find(|line| line["_aws"].is_object())
        .expect("a line of metrics");
    let directive = &line["_aws"]["CloudWatchMetrics"][0];
    let text = |value: &Json| value.as_str().expect("text").to_owned();
    let dimensions: Vec<String> = list(&directive["Dimensions"][0]).into_iter().map(text).collect();
    let metrics = directive["Metrics"].as_array().expect("metrics");
    metrics
        .iter()
        .map(|metric| (text(&directive["Namespace"]), text(&metric["Name"]), dimensions.clone()))
        .collect()
}

#[tokio::test]
async fn alarms_and_dashboard_show_metrics_that_are_emitted() {
    let mut emitted = emitted_by_the_projector().await;
    emitted.extend(emitted_by_aws());
    let template = template("alarms");
    let mut watched = BTreeSet::new();
    walk(&template["Resources"], &mut |value| {
        let (Some(namespace), Some(metric)) =
            (value["Namespace"].as_str(), value["MetricName"].as_str())
        else {
            return;
        };
        let dimensions = value["Dimensions"].as_array().into_iter().flatten();
        let dimensions =
            dimensions.map(|dimension| dimension["Name"].as_str().expect("a name").to_owned());
        watched.insert((namespace.to_owned(), metric.to_owned(), dimensions.collect::<Vec<_>>()));
    });
    let unknown: Vec<_> = watched.difference(&emitted).collect();
    assert!(unknown.is_empty(), "alarms on what nobody emits: {unknown:?}");
    for needed in [
        "IteratorAge",
        "Failures",
        "Rejected",
        "StaleCreatedLater",
        "Throttles",
        "Errors",
        "PutRequests",
        "NumberOfObjects",
        "DestinationDeliveryFailures",
        "DatabaseConnections",
    ] {
        assert!(watched.iter().any(|(_, metric, _)| metric == needed), "no alarm on {needed}");
    }
    let ages = members(&template["Resources"])
        .filter(|(_, resource)| resource["Properties"]["MetricName"] == "IteratorAge")
        .count();
    assert_eq!(ages, 2, "late, and losing");
    for (place, alarm) in resources("AWS::CloudWatch::Alarm") {
        assert_eq!(alarm["Properties"]["AlarmActions"], json!([{ "Ref": "TopicArn" }]), "{place}");
        assert!(alarm["Properties"]["TreatMissingData"].is_string(), "{place}");
    }

    let shown = on_the_dashboard(template);
    let unknown: Vec<_> = shown.difference(&emitted).collect();
    assert!(unknown.is_empty(), "shown, and emitted by nobody: {unknown:?}");
    for metric in emitted.iter().filter(|(namespace, ..)| namespace == "Projector") {
        assert!(shown.contains(metric), "{metric:?} is not on the dashboard");
    }
}

/// The dashboard's metrics, its shorthand (`.` for what stands above, `...` for all of it) written out.
fn on_the_dashboard(template: &Json) -> BTreeSet<(String, String, Vec<String>)> {
    let body = &template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"][0];
    let body = body.as_str().expect("a text").replace("${", "{");
    let numbers = ["{LateSeconds}", "{LosingSeconds}"]
        .iter()
        .fold(body, |body, name| body.replace(name, "1"));
    let body: Json = serde_json::from_str(&numbers).expect("the dashboard is JSON");
    let mut shown = BTreeSet::new();
    for widget in body["widgets"].as_array().expect("widgets") {
        let mut above: Vec<String> = Vec::new();
        for metric in widget["properties"]["metrics"].as_array().expect("metrics") {
            let words: Vec<&str> =
                metric.as_array().expect("a metric").iter().filter_map(Json::as_str).collect();
            if words != ["..."] {
                let written = words.iter().enumerate().map(|(index, word)| match *word {
                    "." => above[index].clone(),
                    word => word.to_owned(),
                });
                above = written.collect();
            }
            let dimensions = above[2..].iter().step_by(2).cloned().collect();
            shown.insert((above[0].clone(), above[1].clone(), dimensions));
        }
    }
    shown
}

/// The suffixes that a template exports under its stack's name.
fn exports(name: &str) -> BTreeSet<String> {
    members(&template(name)["Outputs"])
        .filter_map(|(_, output)| output["Export"]["Name"]["Fn::Sub"].as_str())
        .map(|export| {
            export.strip_prefix("${AWS::StackName}-").expect("the stack's name").to_owned()
        })
        .collect()
}

#[test]
fn what_a_template_imports_another_exports_and_never_in_a_circle() {
    let exported_by = |parameter: &str| match parameter {
        "DataStack" => vec!["data"],
        "DatabaseStack" => vec!["database", "existing-database"],
        "ProjectorStack" => vec!["projector"],
        other => panic!("{other} is no stack"),
    };
    // A projector does not know which of the two it is wired to.
    assert_eq!(exports("database"), exports("existing-database"));
    // From the longest life to the shortest.
    for (age, name) in TEMPLATES.iter().enumerate() {
        walk(template(name), &mut |value| {
            let Some(import) = value.get("Fn::ImportValue") else { return };
            let import = import["Fn::Sub"].as_str().expect("a name");
            let (parameter, suffix) = import.split_once('-').expect("a suffix");
            let parameter = parameter.trim_start_matches("${").trim_end_matches('}');
            for exporter in exported_by(parameter) {
                assert!(
                    exports(exporter).contains(suffix),
                    "{exporter} does not export {suffix}, which {name} imports"
                );
                assert!(
                    TEMPLATES[..age].contains(&exporter),
                    "{name} lives longer than {exporter}"
                );
            }
        });
    }
}

#[test]
fn the_tables_can_be_imported() {
    let template = template("data");
    let import = std::fs::read_to_string(root().join("infra/data.import.json")).expect("the file");
    let import: Json = serde_json::from_str(&import).expect("JSON");
    let mut imported = BTreeSet::new();
    for resource in import.as_array().expect("a list") {
        assert_eq!(
            names(resource),
            BTreeSet::from(["LogicalResourceId", "ResourceIdentifier", "ResourceType"])
        );
        let id = resource["LogicalResourceId"].as_str().expect("an id");
        let declared = &template["Resources"][id];
        assert_eq!(declared["Type"], resource["ResourceType"]);
        assert!(declared["DeletionPolicy"].is_string(), "an import asks for it");
        let parameter = declared["Properties"]["TableName"]["Ref"].as_str().expect("a parameter");
        assert_eq!(
            resource["ResourceIdentifier"]["TableName"],
            template["Parameters"][parameter]["Default"]
        );
        imported.insert(id);
    }
    // An import takes a template of nothing but what is imported, and no outputs.
    assert_eq!(names(&template["Resources"]), imported);
    let text = std::fs::read_to_string(root().join("infra/data.yaml")).expect("the file");
    let (_, behind) = text.split_once("\nOutputs:\n").expect("outputs");
    assert!(
        behind.lines().all(|line| line.is_empty() || line.starts_with([' ', '#'])),
        "Outputs stand last"
    );
}

#[test]
fn the_archive_keeps_expires_and_replicates() {
    let archive = template("archive");
    let bucket = &archive["Resources"]["Bucket"]["Properties"];
    assert_eq!(bucket["VersioningConfiguration"]["Status"], "Enabled");
    let rules = bucket["LifecycleConfiguration"]["Rules"].as_array().expect("rules");
    // The tag that projector/src/archive.rs puts on the object of a removed session.
    let tagged: Vec<&Json> = rules.iter().filter(|rule| rule.get("TagFilters").is_some()).collect();
    assert_eq!(tagged.len(), 1);
    assert_eq!(tagged[0]["TagFilters"], json!([{ "Key": "state", "Value": "deleted" }]));
    assert_eq!(tagged[0]["Status"], "Enabled");
    assert_eq!(tagged[0]["ExpirationInDays"], json!({ "Ref": "DeletedDays" }));
    // Until then a tombstone stops an older write, which a stream can deliver for a day.
    assert!(archive["Parameters"]["DeletedDays"]["MinValue"].as_i64() >= Some(2));
    // Nothing else expires what is current.
    assert!(
        rules
            .iter()
            .all(|rule| rule.get("ExpirationInDays").is_none() || rule.get("TagFilters").is_some())
    );
    let rule = &bucket["ReplicationConfiguration"]["Fn::If"][1]["Rules"][0];
    assert_eq!(rule["DeleteMarkerReplication"]["Status"], "Enabled");
    assert_eq!(rule["Destination"]["Metrics"]["Status"], "Enabled");
    assert_eq!(archive["Parameters"]["ReplicateTo"]["Default"], "");
    // While a replication writes a bucket no projector does: nothing is written unless it is said.
    assert_eq!(template("projector")["Parameters"]["ArchiveBucket"]["Default"], "");
}

/// Whether the whole text matches, as `CloudFormation` takes an `AllowedPattern`.
fn matches(pattern: &str, text: &str) -> bool {
    let script = "import re, sys; sys.exit(not re.fullmatch(sys.argv[1], sys.argv[2]))";
    let status = Command::new("python3").args(["-c", script, pattern, text]).status();
    status.expect("python runs").success()
}

#[test]
fn samconfig_gives_every_stack_what_its_template_asks_for() {
    let config = &FILES["samconfig.toml"];
    let mut deployed = BTreeSet::new();
    for (environment, commands) in members(config).filter(|(name, _)| *name != "version") {
        let settings = &commands["deploy"]["parameters"];
        let file = settings["template_file"].as_str().expect("a template");
        deployed.insert(file.to_owned());
        assert_eq!(
            settings["confirm_changeset"], true,
            "{environment}: what changes is seen before it does"
        );
        assert_eq!(settings["resolve_s3"], true, "{environment}");
        let template = &FILES[file];
        let given: BTreeMap<&str, &str> = settings["parameter_overrides"]
            .as_array()
            .expect("parameters")
            .iter()
            .map(|pair| pair.as_str().and_then(|pair| pair.split_once('=')).expect("Name=value"))
            .collect();
        for (name, value) in &given {
            let parameter = &template["Parameters"][*name];
            assert!(parameter.is_object(), "{environment}: {file} has no parameter {name}");
            if value.starts_with("FILL-IN") {
                continue;
            }
            if let Some(pattern) = parameter["AllowedPattern"].as_str() {
                assert!(matches(pattern, value), "{environment}: {name}={value}");
            }
            if let Some(values) = parameter["AllowedValues"].as_array() {
                assert!(values.contains(&json!(value)), "{environment}: {name}={value}");
            }
        }
        for (name, parameter) in members(&template["Parameters"]) {
            let known = given.contains_key(name) || parameter.get("Default").is_some();
            assert!(known, "{environment} does not say {name}");
        }
        let makes_roles = members(&template["Resources"])
            .any(|(_, resource)| resource["Type"] == "AWS::IAM::Role");
        assert_eq!(settings["capabilities"] == "CAPABILITY_IAM", makes_roles, "{environment}");
    }
    assert_eq!(deployed, TEMPLATES.iter().map(|name| format!("infra/{name}.yaml")).collect());
    // As it is shipped; a team that has filled it in goes on from there, as the runbook says.
    let of = |environment: &str| {
        config[environment]["deploy"]["parameters"]["parameter_overrides"].to_string()
    };
    if !of("new-database").contains("SnapshotIdentifier=FILL-IN") {
        return;
    }
    assert!(of("old").contains("StartingPosition=LATEST"));
    assert!(of("new").contains("StartingPosition=TRIM_HORIZON"));
    assert!(
        !of("new").contains("MaximumRecordAgeSeconds"),
        "the older part of the gap would be given up"
    );
    assert!(!of("new").contains("ArchiveBucket"), "the replication writes that bucket");
}
