//! What holds data (tables, databases, buckets): it is kept, can be imported, and can be reached.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use super::{FILES, TEMPLATES, matches, members, names, overrides, resources, root, template};

#[test]
fn what_holds_data_is_retained() {
    // A creation that failed takes away what it made, so that the next one finds no bucket of that
    // name. A table is never in what is rolled back.
    let stateful = [
        ("AWS::DynamoDB::Table", "Retain"),
        ("AWS::ECR::Repository", "Retain"),
        ("AWS::RDS::DBInstance", "RetainExceptOnCreate"),
        ("AWS::S3::Bucket", "RetainExceptOnCreate"),
        ("AWS::S3::BucketPolicy", "RetainExceptOnCreate"),
        ("AWS::SecretsManager::Secret", "RetainExceptOnCreate"),
        ("AWS::Logs::LogGroup", "RetainExceptOnCreate"),
        ("AWS::SQS::Queue", "RetainExceptOnCreate"),
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

/// Without it, at any later deployment, `CloudFormation` makes an empty database in place of the
/// restored one.
#[test]
fn the_snapshot_of_the_database_cannot_be_left_out() {
    let template = template("database");
    let database = &template["Resources"]["Database"]["Properties"];
    let without = json!({ "Ref": "AWS::NoValue" });
    let reference = json!({ "Ref": "SnapshotIdentifier" });
    let given = json!({ "Fn::If": ["FromSnapshot", reference, without] });
    assert_eq!(database["DBSnapshotIdentifier"], given);
    // An empty database takes a word that somebody wrote, and no omission.
    let not_none = json!({ "Fn::Not": [{ "Fn::Equals": [reference, "none"] }] });
    assert_eq!(template["Conditions"]["FromSnapshot"], not_none);
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
    for refused in ["KmsKeyId", "MasterUserPassword"] {
        assert!(database.get(refused).is_none(), "{refused}");
    }
    for refused in ["DBName", "MasterUsername", "ManageMasterUserPassword", "StorageEncrypted"] {
        let given = &database[refused]["Fn::If"];
        assert_eq!((&given[0], &given[1]), (&json!("FromSnapshot"), &without), "{refused}");
        assert!(!given[2].is_null(), "{refused}: an empty database needs it");
    }
    assert_eq!(database["StorageEncrypted"]["Fn::If"][2], true);
    for required in ["DeletionProtection", "EnableIAMDatabaseAuthentication", "CopyTagsToSnapshot"]
    {
        assert_eq!(database[required], true, "{required}");
    }
    assert_eq!(database["PubliclyAccessible"], false);
}

/// A proxy takes no startup options, which psql and backfill send; whoever reaches the one reaches
/// the other.
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

/// A group that a machine carries cannot be deleted, and its stack neither: the operators' machine
/// has its own.
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
    let same = json!([{ "Ref": "ReaderSecurityGroupId" }, { "Ref": "OperatorSecurityGroupId" }]);
    for name in ["database", "existing-database"] {
        let rule = &template(name)["Rules"]["OneRuleEach"]["Assertions"][0]["Assert"];
        assert_eq!(rule, &json!({ "Fn::Not": [{ "Fn::Equals": same }] }), "{name}");
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

/// A bucket without a policy is imported alone, one that has a policy together with it: in no step
/// is the policy away.
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
fn the_key_of_a_bucket_reaches_every_template_that_needs_it() {
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
    let whose =
        "the bucket's, its copy's, the projector's, a repair's, the service's, a consumer's";
    assert_eq!(keys, 6, "{whose}");
    let config = &FILES["samconfig.toml"];
    for (environment, parameters) in [
        ("old", ["ArchiveKmsKeyArn"].as_slice()),
        ("new", &["ArchiveKmsKeyArn"]),
        ("reconcile", &["ArchiveKmsKeyArn"]),
        ("old-archive", &["KmsKeyArn", "ReplicateToKmsKeyArn"]),
        ("new-archive", &["KmsKeyArn"]),
        ("tenant", &["ArchiveKmsKeyArn"]),
        ("fanout", &["ArchiveKmsKeyArn"]),
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
