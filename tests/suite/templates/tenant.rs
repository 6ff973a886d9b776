//! The service's place in a shared cluster: who gets which role, who reaches what, and what
//! external-dns may write. No stand-in knows Fargate profiles, access entries or an OIDC provider,
//! and none evaluates a policy, so this is read off the templates.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use super::{list, matches, names, root, template, walk};

fn properties(name: &str, id: &str) -> &'static Json {
    &template(name)["Resources"][id]["Properties"]
}

/// The actions that the policies of a role allow.
fn allowed(role: &Json) -> BTreeSet<&str> {
    let mut actions = BTreeSet::new();
    walk(&role["Policies"], &mut |value| {
        if value["Effect"] == "Allow" {
            actions.extend(list(&value["Action"]).into_iter().filter_map(Json::as_str));
        }
    });
    actions
}

/// A role of IRSA is for one service account of one namespace. With `StringLike`, a star or a
/// missing subject, any pod of the cluster could take it.
#[test]
fn a_role_is_taken_by_its_service_account_alone() {
    for (name, id) in [("tenant", "ServiceRole"), ("dns-role", "Role")] {
        let text = &properties(name, id)["AssumeRolePolicyDocument"]["Fn::Sub"];
        let trust: Json = serde_json::from_str(text.as_str().expect("a text")).expect("JSON");
        let provider = "arn:${AWS::Partition}:iam::${AWS::AccountId}:oidc-provider/${OidcIssuer}";
        let expected = json!([{
            "Effect": "Allow",
            "Principal": { "Federated": provider },
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": { "StringEquals": {
                "${OidcIssuer}:aud": "sts.amazonaws.com",
                "${OidcIssuer}:sub": "system:serviceaccount:${Namespace}:${ServiceAccount}",
            } },
        }]);
        assert_eq!(trust["Statement"], expected, "{name}");
        let parameters = &template(name)["Parameters"];
        let takes = |parameter: &str, value: &str| {
            matches(parameters[parameter]["AllowedPattern"].as_str().expect("a pattern"), value)
        };
        assert!(takes("OidcIssuer", "oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF0123"));
        assert!(!takes("OidcIssuer", "https://oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF0123"));
        for parameter in ["Namespace", "ServiceAccount"] {
            assert!(!takes(parameter, "*") && !takes(parameter, "a:b"), "{name}: {parameter}");
        }
    }
}

#[test]
fn the_profile_selects_the_namespace_and_nothing_else() {
    let profile = properties("tenant", "FargateProfile");
    assert_eq!(profile["Selectors"], json!([{ "Namespace": { "Ref": "Namespace" } }]));
    // A static name would make every replacement fail: the new profile comes before the old goes.
    assert!(profile.get("FargateProfileName").is_none());
    let execution = properties("tenant", "PodExecutionRole");
    let trust = &execution["AssumeRolePolicyDocument"]["Statement"][0];
    assert_eq!(trust["Principal"], json!({ "Service": "eks-fargate-pods.amazonaws.com" }));
    let profiles = "arn:${AWS::Partition}:eks:${AWS::Region}:${AWS::AccountId}:fargateprofile/${ClusterName}/*";
    assert_eq!(
        trust["Condition"],
        json!({ "ArnLike": { "aws:SourceArn": { "Fn::Sub": profiles } } })
    );
}

#[test]
fn pods_may_pull_log_and_read_and_the_deployer_edits_one_namespace() {
    let execution = allowed(properties("tenant", "PodExecutionRole"));
    let expected = [
        "ecr:BatchCheckLayerAvailability",
        "ecr:BatchGetImage",
        "ecr:GetAuthorizationToken",
        "ecr:GetDownloadUrlForLayer",
        "logs:CreateLogStream",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents",
    ];
    assert_eq!(execution, BTreeSet::from(expected));
    let service = allowed(properties("tenant", "ServiceRole"));
    let expected = ["kms:Decrypt", "rds-db:connect", "s3:GetObject", "s3:ListBucket"];
    assert_eq!(service, BTreeSet::from(expected), "a reader reads");
    // Not the projector's role in PostgreSQL, which writes.
    assert_ne!(
        template("tenant")["Parameters"]["DatabaseUser"]["Default"],
        template("projector")["Parameters"]["DatabaseUser"]["Default"]
    );

    let access = &template("tenant")["Resources"]["DeployAccess"];
    assert_eq!(access["Condition"], "HasDeployer");
    let policies = access["Properties"]["AccessPolicies"].as_array().expect("policies");
    assert_eq!(policies.len(), 1);
    let scope = json!({ "Type": "namespace", "Namespaces": [{ "Ref": "Namespace" }] });
    assert_eq!(policies[0]["AccessScope"], scope);
    assert!(policies[0]["PolicyArn"].to_string().contains("AmazonEKSEditPolicy"));
    assert!(access["Properties"].get("KubernetesGroups").is_none(), "no group of the cluster's");
}

/// The group of the pods is what the database and the cache let in, and lets nobody in itself: the
/// load balancer's controller opens its ports in the group that carries the cluster's tag.
#[test]
fn the_readers_group_reaches_the_database_and_the_cache() {
    let output = &template("tenant")["Outputs"]["ReaderSecurityGroup"]["Value"];
    assert_eq!(output, &json!({ "Ref": "ReaderSecurityGroup" }));
    let group = properties("tenant", "ReaderSecurityGroup");
    assert!(group.get("SecurityGroupIngress").is_none() && group.get("Tags").is_none());
    let ports: Vec<&Json> =
        list(&group["SecurityGroupEgress"]).iter().map(|rule| &rule["ToPort"]).collect();
    let port = json!({ "Fn::ImportValue": { "Fn::Sub": "${DatabaseStack}-Port" } });
    assert!(ports.contains(&&port), "the port that the database's stack says");
    for (name, rule) in [
        ("database", "DatabaseFromReaders"),
        ("existing-database", "DatabaseFromReaders"),
        ("cache", "CacheFromReaders"),
    ] {
        let resource = &template(name)["Resources"][rule];
        assert_eq!(resource["Condition"], "HasReaders", "{name}");
        let source = &resource["Properties"]["SourceSecurityGroupId"];
        assert_eq!(source, &json!({ "Ref": "ReaderSecurityGroupId" }), "{name}");
        let open = &resource["Properties"]["ToPort"];
        if name == "cache" {
            assert!(ports.contains(&open), "{name}");
        } else {
            let exported = &template(name)["Outputs"]["Port"]["Value"];
            let text = |port: &Json| port.to_string().replace('"', "");
            assert_eq!(text(open), text(exported), "{name}");
        }
    }
}

#[test]
fn the_cache_speaks_tls_and_outlives_its_primary() {
    let cache = properties("cache", "Cache");
    assert_eq!(cache["Engine"], "valkey");
    for required in [
        "TransitEncryptionEnabled",
        "AtRestEncryptionEnabled",
        "AutomaticFailoverEnabled",
        "MultiAZEnabled",
    ] {
        assert_eq!(cache[required], true, "{required}");
    }
    assert_eq!(cache["TransitEncryptionMode"], "required", "preferred lets clients in without TLS");
    assert!(template("cache")["Parameters"]["Nodes"]["MinValue"].as_i64() >= Some(2));
    assert_eq!(cache["SecurityGroupIds"], json!([{ "Ref": "CacheSecurityGroup" }]));
    let memory = &properties("cache", "ParameterGroup")["Properties"]["maxmemory-policy"];
    assert_eq!(memory, "allkeys-lru", "a full cache refuses no write");
    // Whoever deploys it reads this first.
    let description = template("cache")["Description"].as_str().expect("a description");
    assert!(description.contains("ask first what the old one holds that cannot be derived"));
}

/// A batch of external-dns is refused unless every name, type and action in it is one of these. It
/// cannot delete the live record, whatever its policy says, and leaves no AAAA behind.
#[test]
fn external_dns_writes_one_name_and_deletes_nothing() {
    let policies = properties("dns-role", "Role")["Policies"].as_array().expect("policies");
    let changes: Vec<&Json> = policies
        .iter()
        .map(|policy| &policy["PolicyDocument"]["Statement"][0])
        .filter(|statement| statement["Action"] == "route53:ChangeResourceRecordSets")
        .collect();
    let of = |zone: &str| {
        let arn = json!({ "Fn::Sub": format!("arn:${{AWS::Partition}}:route53:::hostedzone/${{{zone}}}") });
        let of_zone: Vec<_> = changes.iter().filter(|change| change["Resource"] == arn).collect();
        assert_eq!(of_zone.len(), 1, "{zone}");
        of_zone[0]["Condition"].clone()
    };
    assert_eq!(changes.len(), 2, "each zone by itself, or one's names would hold for the other");
    let key = |suffix: &str| format!("route53:ChangeResourceRecordSets{suffix}");
    let service = of("ServiceZoneId");
    assert_eq!(
        service["ForAllValues:StringEquals"],
        json!({
            key("NormalizedRecordNames"): { "Ref": "ServiceNames" },
            key("RecordTypes"): ["A", "TXT"],
            key("Actions"): ["CREATE", "UPSERT"],
        })
    );
    let cluster = of("ClusterZoneId");
    let named = json!({ key("NormalizedRecordNames"): { "Ref": "ClusterZoneNames" } });
    assert_eq!(cluster["ForAllValues:StringLike"], named);
    // ForAllValues is true of no values at all.
    for condition in [&service, &cluster] {
        assert_eq!(condition["Null"][key("NormalizedRecordNames")], "false");
    }
    // Route 53 compares names in lower case, without the dot at the end.
    let pattern = &template("dns-role")["Parameters"]["ServiceNames"]["AllowedPattern"];
    let pattern = pattern.as_str().expect("a pattern");
    assert!(matches(pattern, "a-measurements.example.com"));
    assert!(!matches(pattern, "Measurements.example.com") && !matches(pattern, "*.example.com"));
}

#[test]
fn the_old_side_is_denied_only_if_its_role_is_named() {
    let template = template("dns-role");
    assert_eq!(template["Parameters"]["OldRoleName"]["Default"], "");
    let deny = &template["Resources"]["OldRoleDeny"];
    assert_eq!(deny["Condition"], "DeniesOld");
    let statements = &deny["Properties"]["PolicyDocument"]["Statement"];
    assert_eq!(list(statements).len(), 1);
    assert_eq!(statements[0]["Effect"], "Deny");
    // Of its other names and zones nothing is denied.
    let ours = json!({ "ForAnyValue:StringEquals": {
        "route53:ChangeResourceRecordSetsNormalizedRecordNames": { "Ref": "ServiceNames" },
    } });
    assert_eq!(statements[0]["Condition"], ours);
    assert!(statements[0]["Resource"].to_string().contains("hostedzone/${ServiceZoneId}"));
}

#[test]
fn the_image_repository_is_imported_with_its_policy() {
    let repository = &template("images")["Resources"]["Repository"];
    let properties = &repository["Properties"];
    assert_eq!(properties["ImageTagMutability"], "IMMUTABLE");
    assert_eq!(properties["ImageScanningConfiguration"]["ScanOnPush"], true);
    assert!(properties.get("EmptyOnDelete").is_none());
    // Left out, it would be deleted by the first deployment after an import.
    let statements = &properties["RepositoryPolicyText"]["Statement"];
    assert_eq!(statements[0]["Principal"], json!({ "AWS": { "Ref": "PullAccounts" } }));
    // A static name: an update that would replace the repository is refused, for the name is taken.
    assert_eq!(properties["RepositoryName"], json!({ "Ref": "RepositoryName" }));

    let import = std::fs::read_to_string(root().join("infra/images.import.json")).expect("a file");
    let import: Json = serde_json::from_str(&import).expect("JSON");
    assert_eq!(import[0]["ResourceType"], repository["Type"]);
    assert_eq!(import[0]["LogicalResourceId"], "Repository");
    assert_eq!(names(&import[0]["ResourceIdentifier"]), BTreeSet::from(["RepositoryName"]));
    assert_eq!(names(&template("images")["Resources"]), BTreeSet::from(["Repository"]));
    let text = std::fs::read_to_string(root().join("infra/images.yaml")).expect("the file");
    let (_, behind) = text.split_once("\nOutputs:\n").expect("outputs");
    assert!(behind.lines().all(|line| line.starts_with(' ')), "Outputs stand last");
}

#[test]
fn old_generations_expire_late_and_by_number() {
    let template = template("images");
    let policy = &template["Resources"]["Repository"]["Properties"]["LifecyclePolicy"];
    let text = policy["LifecyclePolicyText"]["Fn::Sub"].as_str().expect("a text");
    let text = text.replace("${UntaggedDays}", "14").replace("${KeepImages}", "500");
    let policy: Json = serde_json::from_str(&text).expect("JSON once it is substituted");
    let rules = policy["rules"].as_array().expect("rules");
    for rule in rules {
        let selection = &rule["selection"];
        // An age would expire the one image that runs, if nobody deploys for long.
        let by_age = selection["countType"] == "sinceImagePushed";
        assert_eq!(by_age, selection["tagStatus"] == "untagged", "{rule}");
    }
    assert!(template["Parameters"]["KeepImages"]["MinValue"].as_i64() >= Some(50));
}

/// A third consumer of the tables hears of the objects. What it cannot process waits, and so does
/// what EventBridge could not deliver.
#[test]
fn a_consumer_has_a_queue_and_loses_nothing() {
    let target = &properties("fanout", "Rule")["Targets"][0];
    assert_eq!(target["Arn"], json!({ "Fn::GetAtt": ["Queue", "Arn"] }));
    let dead = json!({ "Fn::GetAtt": ["DeadLetters", "Arn"] });
    assert_eq!(target["DeadLetterConfig"]["Arn"], dead);
    let queue = properties("fanout", "Queue");
    assert_eq!(queue["RedrivePolicy"]["deadLetterTargetArn"], dead);
    let kept = |id: &str| properties("fanout", id)["MessageRetentionPeriod"].as_i64();
    assert!(kept("DeadLetters") > kept("Queue"), "a message keeps its age as it moves");
    for id in ["QueuePolicy", "DeadLettersPolicy"] {
        let statement = &properties("fanout", id)["PolicyDocument"]["Statement"][0];
        let rule = json!({ "ArnEquals": { "aws:SourceArn": { "Fn::GetAtt": ["Rule", "Arn"] } } });
        assert_eq!(statement["Condition"], rule, "{id}");
    }
    let consumer = properties("fanout", "ConsumerPolicy")["PolicyDocument"].to_string();
    assert!(!consumer.contains("dynamodb") && !consumer.contains("PutObject"));

    let archive = template("archive");
    assert_eq!(archive["Parameters"]["EventBridge"]["Default"], "false");
    let events = &archive["Resources"]["Bucket"]["Properties"]["NotificationConfiguration"];
    let on = json!({ "EventBridgeConfiguration": { "EventBridgeEnabled": true } });
    assert_eq!(
        events["Fn::If"],
        json!(["SendsEvents", on, { "Ref": "AWS::NoValue" }]),
        "left out, the bucket's own notifications stay"
    );
}
