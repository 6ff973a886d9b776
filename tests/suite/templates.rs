//! What the templates of `infra/` say. Both linters pass nonsense here and there; what a deployment would show
//! only in an account of its own is read off the templates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use projector::config;
use serde_json::{Value as Json, json};

mod alarms;
mod creation;

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
            // What the alarms of a mapping watch.
            "MetricsConfig": { "Metrics": ["EventCount"] },
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

/// A stream that was turned off and on has another ARN. It replaces its mapping, and that one begins where the new
/// stream does; nothing else changes, and nobody imports the old ARN any more.
#[test]
fn a_new_stream_replaces_one_mapping_and_nothing_else() {
    let template = template("projector");
    for table in ["Sessions", "Scans"] {
        let parameter = format!("{table}StreamArn");
        let definition = &template["Parameters"][&parameter];
        assert_eq!(definition["Default"], "", "a stack that names no stream stays as it is");
        let pattern = definition["AllowedPattern"].as_str().expect("a pattern");
        let stream =
            "arn:aws:dynamodb:eu-central-1:123456789012:table/scans/stream/2026-11-25T08:00:00.123";
        assert!(matches(pattern, stream));
        assert!(!matches(pattern, "arn:aws:dynamodb:eu-central-1:123456789012:table/scans"));
        let named = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": parameter }, ""] }] });
        assert_eq!(template["Conditions"][format!("Names{table}Stream")], named);
        let mapping = &template["Resources"][format!("{table}Mapping")]["Properties"];
        let exported =
            json!({ "Fn::ImportValue": { "Fn::Sub": format!("${{DataStack}}-{parameter}") } });
        let condition = format!("Names{table}Stream");
        assert_eq!(
            mapping["EventSourceArn"],
            json!({ "Fn::If": [condition, { "Ref": parameter }, exported] })
        );
        // LATEST would miss what the new stream got before its mapping was there.
        assert_eq!(
            mapping["StartingPosition"],
            json!({ "Fn::If": [condition, "TRIM_HORIZON", { "Ref": "StartingPosition" }] })
        );
    }
    // One import of each ARN, the one above: any other would keep the export from changing.
    let mut imports = 0;
    walk(template, &mut |value| {
        let import = value["Fn::ImportValue"]["Fn::Sub"].as_str().unwrap_or_default();
        imports += usize::from(import.ends_with("StreamArn"));
    });
    assert_eq!(imports, 2);
    // No stack imports the id of a mapping, which a replacement changes.
    for (name, output) in members(&template["Outputs"]) {
        assert!(!name.ends_with("Mapping") || output.get("Export").is_none(), "{name}");
    }
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

#[test]
fn what_holds_data_is_retained() {
    // A creation that failed takes away what it made, so that the next one finds no bucket of that name. A table is
    // never in what is rolled back.
    let stateful = [
        ("AWS::DynamoDB::Table", "Retain"),
        ("AWS::RDS::DBInstance", "RetainExceptOnCreate"),
        ("AWS::S3::Bucket", "RetainExceptOnCreate"),
        ("AWS::S3::BucketPolicy", "RetainExceptOnCreate"),
        ("AWS::SecretsManager::Secret", "RetainExceptOnCreate"),
        ("AWS::Logs::LogGroup", "RetainExceptOnCreate"),
    ];
    for (kind, policy) in stateful {
        for (place, resource) in resources(kind) {
            assert_eq!(resource["DeletionPolicy"], policy, "{place}");
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
        "awsbackup:job-1b2c3d4e-0000-4000-8000-000000000000",
        "arn:aws:rds:eu-central-1:123456789012:snapshot:awsbackup:job-1b2c3d4e",
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

/// A proxy takes no startup options, which psql and backfill send; whoever reaches the one reaches the other.
#[test]
fn the_instance_behind_a_proxy_can_be_reached() {
    let template = template("database");
    let output = &template["Outputs"]["InstanceHost"];
    assert_eq!(output["Value"], json!({ "Fn::GetAtt": ["Database", "Endpoint.Address"] }));
    assert!(output.get("Condition").is_none(), "the runbook has one command for both");
    let resources = &template["Resources"];
    let group = json!([{ "Ref": "DatabaseSecurityGroup" }]);
    assert_eq!(resources["Database"]["Properties"]["VPCSecurityGroups"], group);
    assert_eq!(resources["DatabaseProxy"]["Properties"]["VpcSecurityGroupIds"], group);
}

/// A group that a machine carries cannot be deleted, and its stack neither: the operators' machine has its own.
#[test]
fn operators_reach_the_database_without_a_group_of_its_stack() {
    for (name, database) in
        [("database", "DatabaseSecurityGroup"), ("existing-database", "DatabaseSecurityGroupId")]
    {
        let template = template(name);
        assert_eq!(template["Parameters"]["OperatorSecurityGroupId"]["Default"], "", "{name}");
        let rule = &template["Resources"]["DatabaseFromOperator"];
        assert_eq!(rule["Type"], "AWS::EC2::SecurityGroupIngress", "{name}");
        assert_eq!(rule["Condition"], "HasOperator", "{name}");
        let properties = &rule["Properties"];
        assert_eq!(properties["GroupId"], json!({ "Ref": database }), "{name}");
        assert_eq!(
            properties["SourceSecurityGroupId"],
            json!({ "Ref": "OperatorSecurityGroupId" }),
            "{name}"
        );
        let client = &template["Resources"]["DatabaseFromClient"]["Properties"];
        for port in ["FromPort", "ToPort", "IpProtocol"] {
            assert_eq!(properties[port], client[port], "{name}: {port}");
        }
    }
    // EC2 refuses the same rule twice, an hour's restore later.
    let rule = &template("database")["Rules"]["OneRuleEach"]["Assertions"][0]["Assert"];
    let same = json!([{ "Ref": "ReaderSecurityGroupId" }, { "Ref": "OperatorSecurityGroupId" }]);
    assert_eq!(rule, &json!({ "Fn::Not": [{ "Fn::Equals": same }] }));
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

/// The lines of a template that a `sed` of the runbook leaves for an import.
fn without_what_follows<'a>(text: &'a str, mark: &str) -> &'a str {
    text.split_once(mark).unwrap_or_else(|| panic!("no {mark:?}")).0
}

/// A bucket without a policy is imported alone, one that has a policy together with it: in no step is the policy away.
#[test]
fn the_archive_can_be_imported_with_and_without_its_policy() {
    let text = std::fs::read_to_string(root().join("infra/archive.yaml")).expect("the file");
    let logical_ids = |text: &str| {
        let (_, resources) = text.split_once("\nResources:\n").expect("resources");
        let line = |line: &str| {
            let id = line.strip_prefix("  ")?.strip_suffix(':')?;
            id.chars().all(char::is_alphanumeric).then(|| id.to_owned())
        };
        resources.lines().filter_map(line).collect::<Vec<_>>()
    };
    let alone = without_what_follows(&text, "\n  # From here on");
    assert_eq!(logical_ids(alone), ["Bucket"]);
    let with_policy =
        without_what_follows(&text, "\n  # From here on nothing is part of either import");
    assert_eq!(logical_ids(with_policy), ["Bucket", "BucketPolicy"]);
    // An import asks for it.
    for id in ["Bucket", "BucketPolicy"] {
        assert!(template("archive")["Resources"][id]["DeletionPolicy"].is_string(), "{id}");
    }
}

/// A key of several Regions has another form, and is a key like any other.
#[test]
fn the_key_of_a_bucket_runs_through_every_template_that_needs_it() {
    let mut keys = 0;
    for name in TEMPLATES {
        for (parameter, definition) in members(&template(name)["Parameters"]) {
            if !parameter.ends_with("KmsKeyArn") {
                continue;
            }
            keys += 1;
            let pattern = definition["AllowedPattern"].as_str().expect("a pattern");
            for key in [
                "",
                "arn:aws:kms:eu-central-1:123456789012:key/1b2c3d4e-0000-4000-8000-000000000000",
                "arn:aws:kms:eu-central-1:123456789012:key/mrk-1b2c3d4e000040008000000000000000",
                "arn:aws-cn:kms:cn-north-1:123456789012:key/1b2c3d4e-0000-4000-8000-000000000000",
            ] {
                assert!(matches(pattern, key), "{name}.{parameter}: {key}");
            }
            let alias = "arn:aws:kms:eu-central-1:123456789012:alias/archive";
            assert!(!matches(pattern, alias), "{name}.{parameter}: a policy takes no alias");
        }
    }
    assert_eq!(keys, 3, "the bucket's, that of its copy, and the projector's");
    let config = &FILES["samconfig.toml"];
    for (environment, parameters) in [
        ("old", ["ArchiveKmsKeyArn"].as_slice()),
        ("new", &["ArchiveKmsKeyArn"]),
        ("old-archive", &["KmsKeyArn", "ReplicateToKmsKeyArn"]),
        ("new-archive", &["KmsKeyArn"]),
    ] {
        let given = overrides(&config[environment]);
        for parameter in parameters {
            assert!(given.contains_key(parameter), "{environment} has no place for {parameter}");
        }
    }
}

#[test]
fn the_archive_keeps_expires_and_replicates() {
    let archive = template("archive");
    let bucket = &archive["Resources"]["Bucket"]["Properties"];
    assert_eq!(bucket["VersioningConfiguration"]["Status"], "Enabled");
    let rules = bucket["LifecycleConfiguration"]["Rules"].as_array().expect("rules");
    // The tag that projector/src/store/archive.rs puts on the object of a removed session.
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

/// What `samconfig.toml` gives a stack; `Name=""` is the empty text.
fn overrides(commands: &'static Json) -> BTreeMap<&'static str, &'static str> {
    commands["deploy"]["parameters"]["parameter_overrides"]
        .as_array()
        .expect("parameters")
        .iter()
        .map(|pair| pair.as_str().and_then(|pair| pair.split_once('=')).expect("Name=value"))
        .map(|(name, value)| (name, if value == "\"\"" { "" } else { value }))
        .collect()
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
        let given = overrides(commands);
        // A stack whose creation failed stands in the way of the same command; sam deletes it.
        assert_eq!(settings["on_failure"], "DELETE", "{environment}");
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
