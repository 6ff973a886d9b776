//! Steps 1 and 2 of docs/service.md on a stand-in of AWS, block by block, in an account of their
//! own: which stack needs what of which, and that each command gets what the one before it made.
//! The stand-in has no quotas, Fargate profiles and pipelines, executes no import of a repository,
//! and runs no cluster: these commands are answered here, and their options are tested with the
//! others that only AWS answers. What its `CloudFormation` does not know is taken out of the
//! templates, as in `templates/deployed.rs`.

use std::fmt::Write as _;
use std::path::Path;

use testkit::services::Stores;

use super::blocks::{Block, PRELOADED, SERVICE, Shell, blocks, root};
use crate::templates::deployed::known;

/// The account: the stand-in keeps what belongs to another one apart.
const ACCOUNT: &str = "210987654321";
const TEMPLATES: [&str; 6] =
    ["images", "existing-database", "tenant", "cache", "delivery", "dns-role"];

/// What the stand-in cannot answer.
const STAND_INS: &str = "
unset -f aws sam
export AWS_ACCESS_KEY_ID=$ACCOUNT AWS_DEFAULT_REGION=eu-central-1 AWS_REGION=eu-central-1
";
const ANSWERS: &str = r#"
aws() {
    case "$1 $2" in
        service-quotas*) echo "Fargate On-Demand vCPU resource count 6.0" ;;
        "eks list-fargate-profiles" | codepipeline*) echo "only AWS answers: aws $1 $2" ;;
        # A real issuer has TLS.
        "eks describe-cluster") preloaded aws "$@" | sed 's|http://|https://|' ;;
        *) preloaded aws "$@" ;;
    esac
}
kubectl() { echo "asked: kubectl $*"; }
psql() { command psql --no-psqlrc -v ON_ERROR_STOP=1 "${@//reader/$READER}"; }
"#;

/// What the team has before: a cluster with its provider, a network, a repository.
const BEFORE: &str = r#"
vpc=$(preloaded aws ec2 describe-vpcs --query 'Vpcs[0].VpcId' --output text)
SUBNETS=($(preloaded aws ec2 describe-subnets --query 'Subnets[].SubnetId' --output text))
group=$(preloaded aws ec2 describe-security-groups --query 'SecurityGroups[0].GroupId' --output text)
preloaded aws ec2 create-tags --resources "${SUBNETS[0]}" --tags Key=kubernetes.io/role/elb,Value=1
preloaded aws eks create-cluster --name shared --role-arn "arn:aws:iam::$ACCOUNT:role/eks" \
    --resources-vpc-config "subnetIds=${SUBNETS[0]}" --access-config authenticationMode=API >/dev/null
issuer=$(preloaded aws eks describe-cluster --name shared --query cluster.identity.oidc.issuer --output text)
preloaded aws iam create-open-id-connect-provider --url "https://${issuer#http://}" \
    --client-id-list sts.amazonaws.com >/dev/null
preloaded aws ecr create-repository --repository-name "team/$READER" >/dev/null
preloaded aws ecr set-repository-policy --repository-name "team/$READER" --policy-text \
    '{"Version": "2012-10-17", "Statement": [{"Sid": "Theirs", "Effect": "Allow", "Principal": "*", "Action": "ecr:BatchGetImage"}]}' >/dev/null
"#;

/// A template for this stand-in. If what it does not know was all that a parameter makes, something
/// else takes its place: a stack in which nothing changes keeps its parameters.
fn template(name: &str) -> String {
    let text = known(name);
    let (condition, parameter) = match name {
        "existing-database" => ("HasReaders", "ReaderSecurityGroupId"),
        "tenant" => ("HasDeployer", "DeployerRoleArn"),
        _ => return text,
    };
    let given = format!(
        "\n  Given:\n    Type: AWS::SSM::Parameter\n    Condition: {condition}\n    \
         Properties: {{ Type: String, Value: !Ref {parameter} }}\n\nOutputs:\n"
    );
    assert_eq!(text.matches("\nOutputs:\n").count(), 1, "{name}");
    text.replace("\nOutputs:\n", &given)
}

/// `samconfig.toml` for this stand-in: nobody confirms, and no database is restored.
fn samconfig(vpc: &str, group: &str) -> String {
    let config = std::fs::read_to_string(root().join("samconfig.toml")).expect("the file");
    let config = config.replace("confirm_changeset = true", "confirm_changeset = false");
    // There is no RDS here that restores a snapshot.
    let (before, database) = config.split_once("[new-database.").expect("the database");
    let (_, after) = database.split_once("\n]\n").expect("its end");
    // Its CloudFormation makes no alarm of several metrics.
    let (projector, cache) = after.split_once("[cache.").expect("the cache");
    let cache = cache.replacen("\"TopicArn=FILL-IN\"", "'TopicArn=\"\"'", 1);
    let after = format!("{projector}[cache.{cache}");
    let mut given = String::new();
    for (name, value) in [
        ("Host", "db.example.com"),
        ("DatabaseName", "measurements"),
        ("ResourceId", "db-ABC"),
        ("InstanceIdentifier", "db"),
        ("VpcId", vpc),
        ("DatabaseSecurityGroupId", group),
    ] {
        write!(given, "\"{name}={value}\", ").expect("a text");
    }
    format!(
        "{before}[new-database.deploy.parameters]\nstack_name = \"measurements-new-database\"\n\
         template_file = \"infra/existing-database.yaml\"\nresolve_s3 = true\n\
         confirm_changeset = false\nparameter_overrides = [{given}]\n{after}"
    )
}

struct Account {
    shell: Shell,
    blocks: Vec<Block>,
    folder: tempfile::TempDir,
}

impl Account {
    async fn start(stores: &Stores, reader: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let infra = folder.path().join("infra");
        std::fs::create_dir(&infra).expect("a folder");
        for name in TEMPLATES {
            std::fs::write(infra.join(format!("{name}.yaml")), template(name)).expect("a template");
        }
        std::os::unix::fs::symlink(root().join("infra/scripts"), infra.join("scripts"))
            .expect("the scripts");
        let mut shell = Shell::start(folder.path()).await;
        shell
            .run(&format!(
                "ACCOUNT={ACCOUNT} READER={reader} NEW_DATABASE_URL='{}'\n{STAND_INS}\n{PRELOADED}\n\
                 {ANSWERS}\n{BEFORE}\n. infra/scripts/functions\n. infra/scripts/service-functions\n\
                 OLD_IMAGE=$ACCOUNT.dkr.ecr.eu-central-1.amazonaws.com/team/$READER:v42\n\
                 CLUSTER=shared OLD_CONTEXT=old NEW_CONTEXT=new NAMESPACE=read-model",
                stores.database_url
            ))
            .await;
        let is_ours = |block: &Block| {
            let steps = ["1. Look", "2. Deploy"];
            block.on_aws
                && block.document == SERVICE
                && steps.iter().any(|step| block.section.starts_with(step))
        };
        let blocks = blocks().into_iter().filter(is_ours).collect();
        let mut account = Self { shell, blocks, folder };
        account.fill_in(reader).await;
        account
    }

    /// `samconfig.toml` and the import's list, as a team fills them in.
    async fn fill_in(&mut self, reader: &str) {
        let known = self.run("echo \"$vpc $(IFS=,; echo \"${SUBNETS[*]}\") $group\"").await;
        let [vpc, subnets, group] =
            known.split_whitespace().collect::<Vec<_>>().try_into().expect("three words");
        let issuer = self.run("echo \"${issuer#http://}\"").await;
        let values = [
            ("RepositoryName", format!("team/{reader}-new")),
            ("PullAccounts", ACCOUNT.to_owned()),
            ("VpcId", vpc.to_owned()),
            ("SubnetIds", subnets.to_owned()),
            ("ClusterName", "shared".to_owned()),
            // The port of the stand-in is no part of a real one.
            ("OidcIssuer", issuer.trim().split(':').next().expect("a host").to_owned()),
            (
                "ConnectionArn",
                format!("arn:aws:codeconnections:eu-central-1:{ACCOUNT}:connection/0a"),
            ),
            ("ServiceRepository", "team/reader".to_owned()),
            ("ProjectorRepository", "team/read-model".to_owned()),
            ("Namespace", "kube-system".to_owned()),
            ("ClusterZoneId", "Z1".to_owned()),
            ("ClusterZoneNames", "*.apps.example.com".to_owned()),
            ("ServiceZoneId", "Z2".to_owned()),
            ("ServiceNames", "measurements.example.com,a-measurements.example.com".to_owned()),
        ];
        let mut config = samconfig(vpc, group);
        for (name, value) in values {
            config = config.replace(&format!("\"{name}=FILL-IN\""), &format!("\"{name}={value}\""));
        }
        std::fs::write(self.path("samconfig.toml"), config).expect("writable");
        let import = std::fs::read_to_string(root().join("infra/images.import.json"));
        let import = import.expect("the list").replace("FILL-IN", &format!("team/{reader}"));
        std::fs::write(self.path("infra/images.import.json"), import).expect("writable");
        self.run("sam deploy --config-env new-database").await;
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    async fn run(&mut self, commands: &str) -> String {
        let text = self.shell.run(commands).await;
        eprintln!("{text}");
        text
    }

    /// The next block, in which this must stand.
    async fn block(&mut self, command: &str) -> String {
        let block = self.blocks.remove(0);
        assert!(block.commands.contains(command), "no {command:?} in {block:?}");
        eprintln!("{}", block.place());
        self.run(&block.commands).await
    }

    /// A parameter of a stack.
    async fn parameter(&mut self, stack: &str, name: &str) -> String {
        let asked = format!(
            "aws cloudformation describe-stacks --stack-name measurements-{stack} --output text \
             --query \"Stacks[0].Parameters[?ParameterKey=='{name}'].ParameterValue\""
        );
        self.run(&asked).await.trim().to_owned()
    }
}

#[tokio::test]
async fn the_stacks_of_the_service_are_made_in_the_order_of_the_runbook() {
    let stores = Stores::fresh().await;
    let reader = format!("reader_{:08x}", fastrand::u32(..));
    stores
        .change(
            "DO $$ BEGIN CREATE ROLE rds_iam; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        )
        .await;
    let mut account = Account::start(&stores, &reader).await;
    account.block("service-quotas").await;
    let subnets = account.block("describe-subnets").await;
    assert!(subnets.contains("subnet-"), "{subnets}");
    let provider = account.block("get-open-id-connect-provider").await;
    assert!(provider.contains("API") && provider.contains("sts.amazonaws.com"), "{provider}");
    let asked = account.block("ingressclass").await;
    assert!(asked.contains("--context old --namespace read-model get pods"), "{asked}");

    // The repository, by import as far as the stand-in goes, and then a new one.
    assert!(account.block("get-repository-policy").await.contains("Theirs"));
    let imported = account.block("--change-set-type IMPORT").await;
    assert!(imported.contains(&format!("Import\tRepository\tteam/{reader}")), "{imported}");
    let executed = account.blocks.remove(0);
    assert!(executed.commands.contains("execute-change-set"), "{executed:?}");
    account.run("aws cloudformation delete-stack --stack-name measurements-images").await;
    account.block("--config-env images").await;
    let repository = account.run("echo \"$NEW_REPOSITORY\"").await;
    assert!(repository.contains(&format!("/team/{reader}-new")), "{repository}");

    account.block("--config-env tenant").await;
    let readers = account.run("echo \"$READERS\"").await.trim().to_owned();
    assert!(readers.starts_with("sg-"), "{readers}");
    assert_eq!(account.parameter("new-database", "ReaderSecurityGroupId").await, readers);
    assert_eq!(account.parameter("new-database", "Host").await, "db.example.com", "it stays");
    let may = |what: &str| {
        format!("SELECT has_table_privilege('{reader}', 'measurements', '{what}')::text")
    };
    for (what, allowed) in [("SELECT", "true"), ("INSERT", "false"), ("DELETE", "false")] {
        assert_eq!(stores.ask(&may(what)).await, allowed, "{what}");
    }

    let config = account.path("samconfig.toml");
    let filled = std::fs::read_to_string(&config).expect("the file");
    let group = format!("ReaderSecurityGroupId={readers}");
    std::fs::write(&config, filled.replace("ReaderSecurityGroupId=FILL-IN", &group))
        .expect("writable");
    account.block("--config-env cache").await;
    assert_ne!(account.run("output measurements-cache Host").await.trim(), "");
    assert_eq!(account.parameter("cache", "ReaderSecurityGroupId").await, readers);
    account.block("--config-env delivery").await;
    let deployer = account.run("output measurements-delivery ServiceDeployerRoleArn").await;
    assert_eq!(account.parameter("tenant", "DeployerRoleArn").await, deployer.trim());
    assert_eq!(account.parameter("tenant", "ClusterName").await, "shared", "it stays");
    account.block("--config-env dns-role").await;
    // It is for the service account that the first block of the runbook names, and for no other.
    let trust = account
        .run("aws iam get-role --role-name \"${DNS_ROLE_ARN##*/}\" --query Role.AssumeRolePolicyDocument")
        .await;
    assert!(trust.contains("system:serviceaccount:kube-system:external-dns"), "{trust}");
    assert!(account.blocks.is_empty(), "{:?}", account.blocks);
}
