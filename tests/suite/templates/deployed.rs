//! The stacks of the service on a stand-in of AWS, as far as it knows them: the image repository,
//! the cache, the builds, the role of external-dns, and an object's event on its way to a
//! consumer's queue. It does not know Fargate profiles, access entries, `CodePipeline`,
//! `CodeDeploy` and OIDC providers, nor rules of security groups as resources of their own: these
//! are taken out here, linted, and read off the templates by `tenant.rs`, `delivery.rs` and
//! `releases.rs`. The record set is in no template: `dns-switch` makes it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::services::service;

use super::root;

/// Runs a command in a folder, and gives what it printed.
pub(super) fn run(folder: &Path, command: &str) -> String {
    let output = Command::new("bash")
        .args(["-c", command])
        .current_dir(folder)
        .env("SAM_CLI_POLL_DELAY", "0.3")
        .output()
        .expect("bash runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command}\n{printed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

pub(super) fn json_of(folder: &Path, command: &str) -> Json {
    serde_json::from_str(&run(folder, &format!("aws --output json {command}"))).expect("JSON")
}

const UNKNOWN: [&str; 6] = [
    "AWS::EC2::SecurityGroupIngress",
    "AWS::EC2::SecurityGroupEgress",
    "AWS::EKS::FargateProfile",
    "AWS::EKS::AccessEntry",
    "AWS::CodePipeline::Pipeline",
    "AWS::IAM::RolePolicy",
];

/// A template without the resources that the stand-in does not know, and without outputs of those.
pub(crate) fn known(name: &str) -> String {
    let text = std::fs::read_to_string(root().join(format!("infra/{name}.yaml"))).expect("a file");
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        let begins = !line.starts_with("   ") && !line.trim_start().starts_with('#');
        if begins && !line.is_empty() {
            blocks.push(String::new());
        }
        let block = blocks.last_mut().expect("a block");
        block.push_str(line);
        block.push('\n');
    }
    let unknown =
        |block: &str| UNKNOWN.iter().any(|kind| block.contains(&format!("Type: {kind}\n")));
    let gone: Vec<String> = blocks
        .iter()
        .filter(|block| unknown(block))
        .map(|block| block.trim_start().split(':').next().expect("an id").to_owned())
        .collect();
    let kept = blocks.iter().filter(|block| {
        !unknown(block) && !gone.iter().any(|id| block.contains(&format!("Value: !Ref {id}\n")))
    });
    kept.map(String::as_str).collect()
}

/// Deploys a template as a stack of this run's own.
pub(super) fn deploy(folder: &Path, name: &str, parameters: &str) -> String {
    deploy_as(folder, name, &known(name), parameters)
}

/// The same with another text of the template.
pub(super) fn deploy_as(folder: &Path, name: &str, template: &str, parameters: &str) -> String {
    let stack = format!("{name}-{}", std::process::id());
    std::fs::write(folder.join(format!("{name}.yaml")), template).expect("a file");
    run(
        folder,
        &format!(
            "sam deploy --stack-name {stack} --template-file {name}.yaml --resolve-s3 \
             --capabilities CAPABILITY_IAM --parameter-overrides {parameters}"
        ),
    );
    stack
}

pub(super) fn output(folder: &Path, stack: &str, key: &str) -> String {
    let command = format!(
        "aws cloudformation describe-stacks --stack-name {stack} --output text \
         --query \"Stacks[0].Outputs[?OutputKey=='{key}'].OutputValue\""
    );
    run(folder, &command).trim().to_owned()
}

pub(super) fn folder() -> tempfile::TempDir {
    assert!(service("AWS_ENDPOINT_URL").starts_with("http://127.0.0.1:"), "a stand-in");
    tempfile::tempdir().expect("a folder")
}

/// The network of the stand-in, as two parameters.
pub(super) fn network(folder: &Path) -> String {
    let vpc = run(folder, "aws ec2 describe-vpcs --query 'Vpcs[0].VpcId' --output text");
    let subnets =
        "aws ec2 describe-subnets --query \"join(',', Subnets[].SubnetId)\" --output text";
    format!("VpcId={} SubnetIds={}", vpc.trim(), run(folder, subnets).trim())
}

/// The images outlive the stack that declares them.
#[test]
fn the_repository_is_immutable_shared_and_retained() {
    let folder = folder();
    let folder = folder.path();
    let name = format!("team/reader-{}", std::process::id());
    let stack = deploy(
        folder,
        "images",
        &format!("RepositoryName={name} PullAccounts=111122223333,444455556666"),
    );
    let describe = format!("ecr describe-repositories --repository-names {name}");
    let repository = json_of(folder, &describe)["repositories"][0].clone();
    assert_eq!(repository["imageTagMutability"], "IMMUTABLE");
    assert_eq!(repository["imageScanningConfiguration"]["scanOnPush"], true);
    assert_eq!(Json::from(output(folder, &stack, "RepositoryUri")), repository["repositoryUri"]);
    let policy = json_of(folder, &format!("ecr get-repository-policy --repository-name {name}"));
    let policy: Json =
        serde_json::from_str(policy["policyText"].as_str().expect("a text")).expect("JSON");
    let accounts = json!({ "AWS": ["111122223333", "444455556666"] });
    assert_eq!(policy["Statement"][0]["Principal"], accounts);
    let rules = json_of(folder, &format!("ecr get-lifecycle-policy --repository-name {name}"));
    let rules: Json =
        serde_json::from_str(rules["lifecyclePolicyText"].as_str().expect("a text")).expect("JSON");
    assert_eq!(rules["rules"][1]["selection"]["countNumber"], 500);

    run(folder, &format!("aws cloudformation delete-stack --stack-name {stack}"));
    let gone =
        format!("timeout 60 aws cloudformation wait stack-delete-complete --stack-name {stack}");
    run(folder, &gone);
    assert_eq!(json_of(folder, &describe)["repositories"][0]["repositoryName"], name);
}

#[test]
fn the_cache_has_two_nodes_tls_and_one_address() {
    let folder = folder();
    let folder = folder.path();
    let stack = deploy(folder, "cache", &network(folder));
    let groups = json_of(folder, "elasticache describe-replication-groups");
    let groups = groups["ReplicationGroups"].as_array().expect("groups");
    let ours = groups.iter().find(|group| {
        group["Description"].as_str().is_some_and(|text| text.starts_with(&format!("{stack},")))
    });
    let cache = ours.expect("a replication group");
    assert_eq!(cache["MemberClusters"].as_array().map(Vec::len), Some(2));
    assert_eq!((&cache["Engine"], &cache["MultiAZ"]), (&json!("valkey"), &json!("enabled")));
    assert_eq!(cache["TransitEncryptionMode"], "required");
    assert_eq!(output(folder, &stack, "Port"), "6379");
    assert_ne!(output(folder, &stack, "Host"), "");
}

/// Everything of the tenant and of the pipelines that the stand-in knows: imports that resolve,
/// roles whose documents are JSON, builds with their variables.
#[test]
fn the_roles_and_the_builds_are_made_of_what_the_stacks_before_export() {
    let folder = folder();
    let folder = folder.path();
    let id = std::process::id();
    let images = deploy(
        folder,
        "images",
        &format!("RepositoryName=team/built-{id} PullAccounts=111122223333"),
    );
    let network = network(folder);
    let group =
        "aws ec2 describe-security-groups --query 'SecurityGroups[0].GroupId' --output text";
    let group = run(folder, group);
    let database = deploy(
        folder,
        "existing-database",
        &format!(
            "Host=db.example.com DatabaseName=measurements ResourceId=db-ABC InstanceIdentifier=db \
             DatabaseSecurityGroupId={} {}",
            group.trim(),
            network.split(' ').next().expect("a VPC")
        ),
    );
    let issuer = "OidcIssuer=oidc.eks.eu-central-1.amazonaws.com/id/ABC";
    let tenant = deploy(
        folder,
        "tenant",
        &format!(
            "ClusterName=shared {issuer} ImagesStack={images} DatabaseStack={database} {network}"
        ),
    );
    let role = output(folder, &tenant, "ServiceRoleArn");
    let (_, role) = role.rsplit_once('/').expect("a name");
    let trust = json_of(folder, &format!("iam get-role --role-name {role}"));
    let condition = &trust["Role"]["AssumeRolePolicyDocument"]["Statement"][0]["Condition"];
    assert_eq!(
        condition["StringEquals"]["oidc.eks.eu-central-1.amazonaws.com/id/ABC:sub"],
        "system:serviceaccount:read-model:reader"
    );
    deploy(
        folder,
        "dns-role",
        &format!(
            "{issuer} ClusterZoneId=Z1 ClusterZoneNames='*.apps.example.com' ServiceZoneId=Z2 \
             ServiceNames=reader.example.com,a-reader.example.com"
        ),
    );

    let connection = "arn:aws:codeconnections:eu-central-1:111122223333:connection/0a1b";
    let delivery = deploy(
        folder,
        "delivery",
        &format!(
            "ConnectionArn={connection} ServiceRepository=team/reader TenantStack={tenant} \
             ImagesStack={images} ProjectorRepository=team/read-model ProjectorStack=projector-new"
        ),
    );
    let projects =
        json_of(folder, &format!("codebuild batch-get-projects --names {delivery}-image"));
    let environment = &projects["projects"][0]["environment"];
    assert_eq!(environment["type"], "ARM_CONTAINER");
    let variables = environment["environmentVariables"].as_array().expect("variables");
    let of = |name: &str| {
        let variable = variables.iter().find(|variable| variable["name"] == name);
        variable.unwrap_or_else(|| panic!("no {name}"))["value"].clone()
    };
    assert_eq!(Json::from(output(folder, &images, "RepositoryUri")), of("REPOSITORY_URI"));
    assert_eq!(of("OVERLAY"), "dark");
    for (project, buildspec, role) in [
        ("image", "infra/buildspec.yml", "ImageBuildRole"),
        ("zip", "infra/buildspec-projector.yml", "ProjectorBuildRole"),
        ("release", "infra/buildspec-release.yml", "ProjectorReleaseRole"),
    ] {
        let asked = format!("codebuild batch-get-projects --names {delivery}-{project}");
        let project = json_of(folder, &asked)["projects"][0].clone();
        assert_eq!(project["source"]["buildspec"], buildspec);
        assert_eq!(project["environment"]["type"], "ARM_CONTAINER", "{buildspec}");
        let resource = format!(
            "cloudformation describe-stack-resource --stack-name {delivery} \
             --logical-resource-id {role}"
        );
        let role = json_of(folder, &resource)["StackResourceDetail"]["PhysicalResourceId"].clone();
        let given = project["serviceRole"].as_str().expect("a role");
        assert!(given.ends_with(&format!("/{}", role.as_str().expect("a name"))), "{given}");
    }
}

/// A zone in which a name leads to a load balancer, as external-dns makes it.
fn zone_with(folder: &Path, host: &str, balancer: &str, zone_of_albs: &str) -> String {
    let (_, domain) = host.split_once('.').expect("a domain");
    let made = format!("route53 create-hosted-zone --name {domain} --caller-reference {domain}");
    let zone = json_of(folder, &made)["HostedZone"]["Id"].as_str().expect("an id").to_owned();
    let alias = json!({ "HostedZoneId": zone_of_albs, "DNSName": format!("{balancer}."),
                        "EvaluateTargetHealth": true });
    let owner = "\"heritage=external-dns,external-dns/owner=shared\"";
    let batch = json!({ "Changes": [
        { "Action": "CREATE", "ResourceRecordSet":
            { "Name": format!("{host}."), "Type": "A", "AliasTarget": alias } },
        { "Action": "CREATE", "ResourceRecordSet":
            { "Name": format!("{host}."), "Type": "TXT", "TTL": 300,
              "ResourceRecords": [{ "Value": owner }] } },
    ] });
    std::fs::write(folder.join("batch.json"), batch.to_string()).expect("a file");
    json_of(
        folder,
        &format!(
            "route53 change-resource-record-sets --hosted-zone-id {zone} --change-batch \
             file://batch.json"
        ),
    );
    zone
}

/// The record set is in no template, because none can be imported: `dns-switch` makes it, here by a
/// Route 53 that is not of these tests. (It refuses no simple record set beside weighted ones.)
#[test]
fn the_record_set_moves_and_comes_back() {
    let folder = folder();
    let folder = folder.path();
    let vpc_subnets =
        run(folder, "aws ec2 describe-subnets --query 'Subnets[].SubnetId' --output text");
    let balancer = |name: &str| {
        let made = json_of(
            folder,
            &format!(
                "elbv2 create-load-balancer --name {name}-{} --subnets {}",
                std::process::id(),
                vpc_subnets.trim()
            ),
        );
        let made = &made["LoadBalancers"][0];
        let text = |member: &str| made[member].as_str().expect("a text").to_owned();
        (text("DNSName"), text("CanonicalHostedZoneId"))
    };
    let ((old, zone_of_albs), (new, _)) = (balancer("old"), balancer("new"));
    let host = format!("measurements.n{}.example.com", std::process::id());
    let zone = zone_with(folder, &host, &old, &zone_of_albs);
    let sets = || {
        let listing = format!("route53 list-resource-record-sets --hosted-zone-id {zone}");
        let listing = json_of(folder, &listing);
        let of_host = |set: &&Json| set["Name"] == format!("{host}.");
        let sets = listing["ResourceRecordSets"].as_array().expect("sets");
        sets.iter().filter(of_host).cloned().collect::<Vec<_>>()
    };
    let script = root().join("infra/scripts/dns-switch");
    let switch = |step: &str| {
        let to = if ["flip", "weighted"].contains(&step) {
            format!("--to {new}")
        } else {
            String::new()
        };
        let command = format!(
            "{} {step} --zone {zone} --name {host} --saved saved.json {to}",
            script.display()
        );
        run(folder, &command)
    };
    let before = sets();
    for (step, count) in [("flip", 2), ("weighted", 4)] {
        assert!(switch(step).contains("INSYNC"), "{step}");
        let moved = sets();
        assert_eq!(moved.len(), count, "{moved:?}");
        let leads =
            |set: &Json| set["AliasTarget"]["DNSName"] == format!("{}.", new.to_lowercase());
        assert_eq!(moved.iter().filter(|set| leads(set)).count(), 1, "{moved:?}");
        switch("back");
        assert_eq!(sets(), before, "to the letter");
    }
}

/// Every object below the prefix is a message, and no other object of the bucket is.
#[test]
fn an_object_becomes_a_message_of_the_consumer() {
    let folder = folder();
    let folder = folder.path();
    let bucket = format!("archive-with-events-{}", std::process::id());
    let archive = deploy(folder, "archive", &format!("BucketName={bucket} EventBridge=true"));
    let topic = "arn:aws:sns:eu-central-1:111122223333:alarms";
    let fanout = deploy(folder, "fanout", &format!("ArchiveStack={archive} TopicArn={topic}"));
    let alarms = format!("cloudwatch describe-alarms --alarm-name-prefix {fanout}-");
    let alarms = json_of(folder, &alarms)["MetricAlarms"].clone();
    let of_queue = |output_name: &str, metric: &str| {
        let url = output(folder, &fanout, output_name);
        let (_, queue) = url.rsplit_once('/').expect("a name");
        let dimension = json!([{ "Name": "QueueName", "Value": queue }]);
        alarms
            .as_array()
            .expect("alarms")
            .iter()
            .any(|alarm| alarm["MetricName"] == metric && alarm["Dimensions"] == dimension)
    };
    assert!(of_queue("DeadLettersUrl", "ApproximateNumberOfMessagesVisible"), "{alarms}");
    assert!(of_queue("QueueUrl", "ApproximateAgeOfOldestMessage"), "{alarms}");
    let queue = output(folder, &fanout, "QueueUrl");
    std::fs::write(folder.join("object"), "{}").expect("a file");
    for key in ["other/s1.json", "measurements/s1.json"] {
        run(folder, &format!("aws s3api put-object --bucket {bucket} --key {key} --body object"));
    }
    let receive = format!(
        "aws --endpoint-url \"$AWS_ENDPOINT_URL\" --output json sqs receive-message \
         --queue-url {queue} --max-number-of-messages 10"
    );
    let mut keys = Vec::new();
    for _ in 0..40 {
        let received = run(folder, &receive);
        let received: Json = serde_json::from_str(&received).unwrap_or_default();
        for message in received["Messages"].as_array().into_iter().flatten() {
            let body = message["Body"].as_str().expect("a body");
            let event: Json = serde_json::from_str(body).expect("JSON");
            keys.push(event["detail"]["object"]["key"].clone());
        }
        if !keys.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(keys, ["measurements/s1.json"]);
}
