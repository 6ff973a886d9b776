//! `reconcile.yaml` and its state machine: what the function and the state machine may do, what is
//! retried and for how long, and that a failed execution can be redriven.

mod deployed;
mod failing;
mod machine;

use std::collections::BTreeSet;

use projector::config;
use serde_json::{Value as Json, json};

use super::permissions::allowed;
use super::{FILES, STATES, list, members, names, template, walk};

/// The Maps of the state machine, each with the only state of its children that calls.
const MAPS: [(&str, &str); 5] = [
    ("CompareSessions", "SessionsSlice"),
    ("CompareScans", "ScansSlice"),
    ("CountRows", "CountRange"),
    ("CheckRows", "CheckRange"),
    ("DrainFailures", "Failure"),
];

/// An import of a table's name, in an ARN.
fn of_table(table: &str, end: &str) -> Json {
    let import = json!({ "Fn::ImportValue": { "Fn::Sub": format!("${{DataStack}}-{table}") } });
    let arn =
        "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/${Table}".to_owned();
    json!({ "Fn::Sub": [arn + end, { "Table": import }] })
}

fn of_tables(end: &str) -> Json {
    json!([of_table("SessionsTable", end), of_table("ScansTable", end)])
}

/// The bucket of failures of the projector, in an ARN.
fn of_failures(end: &str) -> Json {
    let import = json!({ "Fn::ImportValue": { "Fn::Sub": "${ProjectorStack}-FailureBucket" } });
    json!({ "Fn::Sub": [format!("arn:${{AWS::Partition}}:s3:::${{Bucket}}{end}"),
                        { "Bucket": import }] })
}

/// Each action with its resource, by the name of its policy.
fn assert_allowed(role: &str, expected: &[(&str, &[&str], Json)]) {
    let allowed = allowed(template("reconcile"), role);
    let mut count = 0;
    for (policy, actions, resource) in expected {
        for action in *actions {
            let found = allowed.get(&((*policy).to_owned(), (*action).to_owned()));
            let found = found.unwrap_or_else(|| panic!("{role}: {policy} lacks {action}"));
            assert_eq!(&found["Resource"], resource, "{role}: {policy} {action}");
            count += 1;
        }
    }
    assert_eq!(allowed.len(), count, "{role} may do more: {:?}", allowed.keys());
}

#[test]
fn the_function_may_do_what_it_calls_and_no_more() {
    let sub = |text: &str| json!({ "Fn::Sub": text });
    let network = [
        "ec2:AssignPrivateIpAddresses",
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSubnets",
        "ec2:UnassignPrivateIpAddresses",
    ];
    let streams = [
        "dynamodb:DescribeStream",
        "dynamodb:GetRecords",
        "dynamodb:GetShardIterator",
        "dynamodb:ListStreams",
    ];
    let tables = ["dynamodb:BatchGetItem", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive"];
    let drained = ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:GetObject"];
    let instance =
        json!({ "Fn::ImportValue": { "Fn::Sub": "${DatabaseStack}-InstanceResourceId" } });
    let login = "arn:${AWS::Partition}:rds-db:${AWS::Region}:${AWS::AccountId}:dbuser:\
                 ${ResourceId}/${DatabaseUser}";
    let secret = json!({ "Fn::ImportValue": { "Fn::Sub": "${DatabaseStack}-SecretArn" } });
    let objects = sub("arn:${AWS::Partition}:s3:::${ArchiveBucket}/${ArchivePrefix}*");
    assert_allowed(
        "Role",
        &[
            ("exports", &["s3:GetObject"], sub("${ExportBucket.Arn}/exports/*")),
            ("exports", &["s3:ListBucket"], json!({ "Fn::GetAtt": ["ExportBucket", "Arn"] })),
            ("failures", &drained, of_failures("/aws/lambda/*")),
            ("failures", &["s3:ListBucket"], of_failures("")),
            ("tables", &tables, of_tables("")),
            ("streams", &streams, of_tables("/stream/*")),
            (
                "logs",
                &["logs:CreateLogStream", "logs:PutLogEvents"],
                json!({ "Fn::GetAtt": ["LogGroup", "Arn"] }),
            ),
            ("network", &network, json!("*")),
            (
                "login-by-iam",
                &["rds-db:connect"],
                json!({ "Fn::Sub": [login, { "ResourceId": instance }] }),
            ),
            ("login-by-secret", &["secretsmanager:GetSecretValue"], secret),
            ("archive", &["s3:GetObject", "s3:PutObject", "s3:PutObjectTagging"], objects),
            ("archive", &["s3:ListBucket"], sub("arn:${AWS::Partition}:s3:::${ArchiveBucket}")),
            (
                "archive-key",
                &["kms:Decrypt", "kms:GenerateDataKey"],
                json!({ "Ref": "ArchiveKmsKeyArn" }),
            ),
        ],
    );
    // The code itself makes no network interface.
    let policies = &template("reconcile")["Resources"]["Role"]["Properties"]["Policies"];
    let denied = |policies: &Json| {
        let mut denied = BTreeSet::new();
        walk(policies, &mut |value| {
            if value["Effect"] == "Deny" {
                denied.extend(list(&value["Action"]).into_iter().filter_map(Json::as_str));
            }
        });
        denied.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(denied(policies), network);
    for bucket in ["exports", "failures"] {
        let key = (bucket.to_owned(), "s3:ListBucket".to_owned());
        let prefix = &allowed(template("reconcile"), "Role")[&key]["Condition"]["StringLike"];
        assert!(prefix["s3:prefix"].as_str().is_some_and(|prefix| prefix.ends_with("/*")));
    }
}

#[test]
fn the_state_machine_may_do_what_its_states_do_and_no_more() {
    let sub = |text: &str| json!({ "Fn::Sub": text });
    let states = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:";
    let exports = ["s3:AbortMultipartUpload", "s3:GetObject", "s3:PutObject", "s3:PutObjectAcl"];
    let results =
        ["s3:AbortMultipartUpload", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"];
    assert_allowed(
        "StateMachineRole",
        &[
            ("function", &["lambda:InvokeFunction"], json!({ "Fn::GetAtt": ["Function", "Arn"] })),
            (
                "children",
                &["states:StartExecution"],
                sub(&format!("{states}stateMachine:${{AWS::StackName}}")),
            ),
            (
                "children",
                &["states:DescribeExecution", "states:StopExecution"],
                sub(&format!("{states}execution:${{AWS::StackName}}:*")),
            ),
            (
                "children",
                &["states:RedriveExecution"],
                sub(&format!("{states}execution:${{AWS::StackName}}/*")),
            ),
            ("exports", &["dynamodb:ExportTableToPointInTime"], of_tables("")),
            ("exports", &["dynamodb:DescribeExport"], of_tables("/export/*")),
            ("exports", &exports, sub("${ExportBucket.Arn}/exports/*")),
            ("results", &results, sub("${ExportBucket.Arn}/results/*")),
            ("failures", &["s3:ListBucket"], of_failures("")),
            ("topic", &["sns:Publish"], json!({ "Ref": "TopicArn" })),
        ],
    );
    let machine = &template("reconcile")["Resources"]["StateMachine"]["Properties"];
    // The ARNs of its own children have its name.
    assert_eq!(machine["Name"], json!({ "Ref": "AWS::StackName" }));
    assert_eq!(machine["Role"], json!({ "Fn::GetAtt": ["StateMachineRole", "Arn"] }));
    // The names in braces are those that the template puts in.
    let text = std::fs::read_to_string(super::root().join(STATES)).expect("the states");
    let used: BTreeSet<&str> =
        text.split("${").skip(1).filter_map(|rest| rest.split('}').next()).collect();
    assert_eq!(names(&machine["DefinitionSubstitutions"]), used);
}

#[test]
fn the_function_is_the_projector_with_requests_for_its_events() {
    let template = template("reconcile");
    let function = &template["Resources"]["Function"]["Properties"];
    let variables = &function["Environment"]["Variables"];
    let mut read: BTreeSet<&str> = config::VARIABLES.into_iter().collect();
    read.extend(["RUST_LOG", "EVENTS", "FUNCTION_TIMEOUT_SECONDS"]);
    // One is enough for a slice, which has others beside it.
    read.remove("DATABASE_CONNECTIONS");
    assert_eq!(names(variables), read);
    assert_eq!(variables["EVENTS"], "reconcile");
    let host = json!({ "Fn::ImportValue": { "Fn::Sub": "${DatabaseStack}-InstanceHost" } });
    let given = &variables["DATABASE_URL"]["Fn::Sub"][1]["Host"];
    assert_eq!(given, &host, "a repair refuses a proxy");
    let projector = &super::template("projector")["Resources"]["Function"]["Properties"];
    for same in ["CodeUri", "Runtime", "Handler", "Architectures", "VpcConfig"] {
        assert_eq!(function[same], projector[same], "{same}");
    }
    let timeout = &template["Parameters"]["FunctionTimeoutSeconds"];
    assert_eq!(timeout["Default"], projector["Timeout"]);
    assert_eq!(function["Timeout"], 900);
    assert!(timeout["MaxValue"].as_i64() < Some(900 / 2), "a slice needs twice that");

    // CloudFormation cannot add.
    let reserved = &function["ReservedConcurrentExecutions"];
    assert_eq!(
        reserved,
        &json!({ "Fn::FindInMap": ["Reserved", { "Ref": "MaxConcurrency" }, "Concurrency"] })
    );
    let sizes = &template["Parameters"]["MaxConcurrency"]["AllowedValues"];
    let sizes: Vec<u64> = list(sizes).into_iter().filter_map(Json::as_u64).collect();
    assert_eq!(sizes.len(), names(&template["Mappings"]["Reserved"]).len());
    for size in sizes {
        let reserved = &template["Mappings"]["Reserved"][size.to_string()]["Concurrency"];
        assert_eq!(reserved.as_u64(), Some(size + 2));
    }
}

/// Every state, with its name and those around it.
fn states() -> Vec<(Vec<&'static str>, &'static Json)> {
    fn collect(
        states: &'static Json,
        around: &[&'static str],
        found: &mut Vec<(Vec<&'static str>, &'static Json)>,
    ) {
        for (name, state) in members(&states["States"]) {
            let path = [around, &[name]].concat();
            let inner = list(&state["Branches"]).into_iter().chain([&state["ItemProcessor"]]);
            inner.for_each(|states| collect(states, &path, found));
            found.push((path, state));
        }
    }
    let mut found = Vec::new();
    collect(&FILES[STATES], &[], &mut found);
    found
}

fn state(name: &str) -> &'static Json {
    let mut named = states().into_iter().filter(|(path, _)| path.last() == Some(&name));
    let (_, state) = named.next().unwrap_or_else(|| panic!("no state {name}"));
    assert!(named.next().is_none(), "two states are called {name}");
    state
}

/// No task waits for ever, and nothing that may pass ends a run at once. What does not pass is not
/// tried again.
#[test]
fn every_task_is_bounded_and_retried_at_random_moments() {
    let whole = FILES[STATES]["TimeoutSeconds"].as_u64().expect("a limit of the whole");
    assert_eq!(whole, 3 * 24 * 3600);
    let (mut tasks, mut of_function) = (0, 0);
    for (path, state) in states().iter().filter(|(_, state)| state["Type"] == "Task") {
        let resource = state["Resource"].as_str().expect("a resource");
        let is_function = resource.ends_with(":lambda:invoke");
        // A little more than Lambda itself allows.
        let limit = if is_function { 960 } else { 60 };
        assert_eq!(state["TimeoutSeconds"], limit, "{path:?}");
        let retries = state["Retry"].as_array().unwrap_or_else(|| panic!("{path:?} has no Retry"));
        let last = retries.last().expect("a retry");
        assert_eq!(last["ErrorEquals"], json!(["States.TaskFailed", "States.Timeout"]), "{path:?}");
        assert_eq!(last["JitterStrategy"], "FULL", "{path:?}");
        assert!(last["MaxAttempts"].as_u64() >= Some(5), "{path:?}");
        if is_function {
            let never = &retries[0];
            assert_eq!(never["MaxAttempts"], 0, "{path:?}");
            let names = list(&never["ErrorEquals"]);
            assert!(names.contains(&&json!("WrongEvent")), "{path:?}");
            assert!(last["MaxDelaySeconds"].as_u64() <= Some(300), "{path:?}");
            assert_eq!(state["Parameters"]["FunctionName"], "${FunctionArn}");
            of_function += 1;
        }
        tasks += 1;
    }
    assert_eq!((of_function, tasks), (9, 15));
    // A lease that nobody renews is dead after 25 minutes.
    let held = &state("Begin")["Retry"][1];
    assert_eq!(held["ErrorEquals"], json!(["HeldByAnother"]));
    let waits = held["IntervalSeconds"].as_u64().zip(held["MaxAttempts"].as_u64());
    assert!(waits.is_some_and(|(seconds, attempts)| seconds * attempts > 25 * 60));
}

/// A redrive begins where an execution failed. It would find nothing to go on with if an error were
/// caught and led to a state of its own, or if the lease were ended. Two errors are caught: a run
/// is over when its success cannot be told, and an object that stays keeps no other from its end.
#[test]
fn no_error_is_caught_so_that_a_redrive_goes_on() {
    let mut caught = Vec::new();
    for (path, state) in states() {
        caught.extend(state.get("Catch").map(|catch| (path.last().copied(), catch.clone())));
    }
    let expected = [
        (Some("Failure"), json!([{ "ErrorEquals": ["DamagedFile"], "Next": "ObjectLeft" }])),
        (
            Some("TellSuccess"),
            json!([{ "ErrorEquals": ["States.ALL"], "ResultPath": "$.untold", "Next": "Done" }]),
        ),
    ];
    assert_eq!(caught, expected);
    let request = &state("End")["Parameters"]["Payload"]["reconcile"]["end"];
    let expected = json!({ "run.$": "$.begun.run", "repair.$": "$.begun.repair",
                           "owner.$": "$$.Execution.Id", "complete": true });
    assert_eq!(request, &expected);
    for from in ["WrongInput", "SessionsUnusable", "ScansUnusable", "LeftObjects"] {
        assert_eq!(state(from)["Next"], "Failed", "{from}");
    }
    assert_eq!(state("Failed")["ErrorPath"], "$.failure.Error");
    assert_eq!(state("Failed")["CausePath"], "$.failure.Cause");
    assert_eq!(state("IsComplete")["Default"], "LeftObjects");
}

/// Each Map is bounded, leaves nothing in the state of its parent, and fails with its first child.
#[test]
fn the_maps_differ_in_what_they_read_and_in_nothing_else() {
    for (name, child) in MAPS {
        let map = state(name);
        let processor = &map["ItemProcessor"];
        // A slice takes up to 15 minutes per call: an express child ends after five.
        let config = json!({ "Mode": "DISTRIBUTED", "ExecutionType": "STANDARD" });
        assert_eq!(processor["ProcessorConfig"], config, "{name}");
        assert_eq!(map["MaxConcurrency"], "${MaxConcurrency}", "{name}");
        assert_eq!(map["ToleratedFailurePercentage"], 0, "{name}");
        // Its children and its run carry the name of the state.
        assert_eq!(map["Label"], name);
        assert_eq!(map.get("ResultPath"), Some(&Json::Null), "{name}");
        let results = json!({ "Bucket": "${ExportBucket}", "Prefix": "results" });
        assert_eq!(map["ResultWriter"]["Parameters"], results, "{name}");
        assert_eq!(map["ResultWriter"]["Resource"], "arn:${Partition}:states:::s3:putObject");
        let mut processor = processor.clone();
        let children = processor["States"].as_object_mut().expect("states");
        if name == "DrainFailures" {
            // It may leave an object where it is.
            children.remove("ObjectLeft").expect("its own end");
            children[child].as_object_mut().expect("a state").remove("Catch").expect("a Catch");
        }
        let plain = |json: &Json| json.to_string().replace(child, "Child");
        assert_eq!(
            plain(&processor),
            plain(&state(MAPS[0].0)["ItemProcessor"]).replace(MAPS[0].1, "Child")
        );
    }
    let child = &state("SessionsSlice");
    // Its answer is its next request.
    assert_eq!(child["Parameters"]["Payload"], json!({ "reconcile.$": "$" }));
    assert_eq!(child["OutputPath"], "$.Payload");
    let never = json!(["DamagedFile", "WrongEvent", "LeaseEnded"]);
    assert_eq!(child["Retry"][0], json!({ "ErrorEquals": never, "MaxAttempts": 0 }));
    let settled = &state("SessionsSliceSettled");
    assert_eq!(settled["Default"], "SessionsSlice");
    let done = json!({ "Variable": "$.done", "BooleanEquals": true, "Next": "SessionsSliceDone" });
    assert_eq!(settled["Choices"], json!([done]));
}

#[test]
fn each_request_has_the_members_that_the_function_takes() {
    let item = |member: &str| json!(format!("$$.Map.Item.Value.{member}"));
    for name in ["CompareSessions", "CompareScans"] {
        let reader = &state(name)["ItemReader"];
        assert_eq!(reader["Resource"], "arn:${Partition}:states:::s3:getObject", "{name}");
        assert_eq!(reader["ReaderConfig"], json!({ "InputType": "JSONL" }), "{name}");
        assert_eq!(reader["Parameters"]["Bucket"], "${ExportBucket}", "{name}");
        let table = name.trim_start_matches("Compare").to_lowercase();
        assert_eq!(reader["Parameters"]["Key.$"], format!("$.{table}.manifest"), "{name}");
        let slice = json!({ "bucket": "${ExportBucket}", "key.$": item("dataFileS3Key"),
                            "md5.$": item("md5Checksum"), "items.$": item("itemCount"), "next": 0,
                            "repair.$": "$.begun.repair", "run.$": "$.begun.run" });
        assert_eq!(state(name)["ItemSelector"], slice, "{name}");
    }
    for (name, step) in [("CountRows", "count"), ("CheckRows", "check")] {
        let range = json!({ "run.$": item("run"), "repair.$": item("repair"), "step": step,
                            "after.$": item("after"), "through.$": item("through") });
        assert_eq!(state(name)["ItemSelector"], range, "{name}");
        assert_eq!(state(name)["ItemsPath"], "$.split.ranges", "{name}");
    }
    let failure = json!({ "bucket": "${FailureBucket}", "failure.$": item("Key"),
                          "repair.$": "$.begun.repair", "run.$": "$.begun.run" });
    assert_eq!(state("DrainFailures")["ItemSelector"], failure);
    let reader = &state("DrainFailures")["ItemReader"];
    assert_eq!(reader["Resource"], "arn:${Partition}:states:::s3:listObjectsV2");
    let where_lambda_writes = json!({ "Bucket": "${FailureBucket}", "Prefix": "aws/lambda/" });
    assert_eq!(reader["Parameters"], where_lambda_writes);
    let request = |name: &str| state(name)["Parameters"]["Payload"]["reconcile"].clone();
    let begin =
        json!({ "source": "reconcile", "owner.$": "$$.Execution.Id", "repair.$": "$.repair" });
    assert_eq!(request("Begin"), json!({ "begin": begin }));
    let follow = json!({ "repair.$": "$.begun.repair", "owner.$": "$$.Execution.Id" });
    assert_eq!(request("Follow"), json!({ "follow": follow }));
    let ranges = json!({ "run.$": "$.begun.run", "repair.$": "$.begun.repair", "at_most": 400 });
    assert_eq!(request("SplitIntoRanges"), json!({ "ranges": ranges }));
}

/// The checks come after the counts, and those after every file.
#[test]
fn the_rows_are_checked_after_all_files_are_compared() {
    for (from, to) in [
        ("CompareSessions", "CompareScans"),
        ("CompareScans", "SplitIntoRanges"),
        ("SplitIntoRanges", "CountRows"),
        ("CountRows", "CheckRows"),
        ("CheckRows", "End"),
        ("DrainFailures", "End"),
    ] {
        assert_eq!(state(from)["Next"], to, "{from}");
    }
    assert_eq!(state("End")["End"], true);
    // The output of an execution is the answer of `end`.
    assert_eq!(state("End")["ResultSelector"], json!({ "ended.$": "$.Payload" }));
    assert_eq!(state("Reconcile")["ResultSelector"], json!({ "work.$": "$[1]" }));
    assert_eq!(state("Done")["OutputPath"], "$.result.work.ended");
}

#[test]
fn exports_are_of_both_tables_and_never_made_twice() {
    for (table, lower) in [("Sessions", "sessions"), ("Scans", "scans")] {
        let export = &state(&format!("Export{table}"))["Parameters"];
        assert_eq!(export["TableArn"], format!("${{{table}TableArn}}"));
        assert_eq!(
            (&export["S3Bucket"], &export["S3Prefix"]),
            (&json!("${ExportBucket}"), &json!("exports"))
        );
        assert_eq!(
            (&export["ExportFormat"], &export["ExportType"]),
            (&json!("DYNAMODB_JSON"), &json!("FULL_EXPORT"))
        );
        let token = format!("States.Format('{{}}-{lower}', $$.Execution.Name)");
        assert_eq!(export["ClientToken.$"], token);
        // Twice the same export would leave the other table out.
        let fits = state(&format!("Is{table}Exported"))["Choices"][1]["And"].clone();
        let variable = format!("$.{lower}.export.TableArn");
        let expected = json!({ "Variable": variable, "StringEquals": export["TableArn"] });
        assert!(list(&fits).contains(&&expected), "{table}");
        assert_eq!(
            state(&format!("WaitFor{table}Export"))["Seconds"],
            120,
            "see the head of the file"
        );
    }
}

#[test]
fn a_schedule_compares_and_is_off() {
    let template = template("reconcile");
    let schedule = &template["Parameters"]["Schedule"];
    assert_eq!(schedule["Default"], "");
    let pattern = schedule["AllowedPattern"].as_str().expect("a pattern");
    for (text, is_one) in
        [("", true), ("cron(0 1 * * ? *)", true), ("rate(1 day)", true), ("daily", false)]
    {
        assert_eq!(super::matches(pattern, text), is_one, "{text}");
    }
    let on = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": "Schedule" }, ""] }] });
    assert_eq!(template["Conditions"]["HasSchedule"], on);
    for name in ["Nightly", "ScheduleRole"] {
        assert_eq!(template["Resources"][name]["Condition"], "HasSchedule");
    }
    let target = &template["Resources"]["Nightly"]["Properties"]["Target"];
    let input: Json =
        serde_json::from_str(target["Input"].as_str().expect("a text")).expect("JSON");
    assert_eq!(input, json!({ "repair": false, "exports": null, "failures": false }));
    let machine = json!({ "Fn::GetAtt": ["StateMachine", "Arn"] });
    assert_eq!(target["Arn"], machine);
    assert_allowed("ScheduleRole", &[("start", &["states:StartExecution"], machine)]);
}

/// An execution takes at most three days, and an export may be a day older.
#[test]
fn exports_expire_and_not_while_they_are_read() {
    let bucket = &template("reconcile")["Resources"]["ExportBucket"]["Properties"];
    let rules = list(&bucket["LifecycleConfiguration"]["Rules"]);
    let of = |prefix: &str| {
        let rule = rules.iter().find(|rule| rule["Prefix"] == prefix).expect("a rule");
        assert_eq!(rule["Status"], "Enabled");
        rule["ExpirationInDays"].clone()
    };
    assert_eq!(of("exports/"), 7);
    assert_eq!(of("results/"), json!({ "Ref": "LogRetentionDays" }));
    assert_eq!(rules.len(), 2);
}
