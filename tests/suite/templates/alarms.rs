//! What wakes somebody: every metric that is watched is emitted, each alarm says where to read on,
//! and one mapping that stops is not hidden by the other.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};
use testkit::emulator::{Lambda, event};
use testkit::records::{LABEL, session};
use testkit::services::Stores;

use super::{TEMPLATES, list, resources, root, template, walk};

/// What an AWS service emits under which dimensions, from its documentation.
fn emitted_by_aws() -> BTreeSet<(String, String, Vec<String>)> {
    let function = ["FunctionName"].as_slice();
    let mapping = ["EventSourceMappingUUID"].as_slice();
    let instance = ["DBInstanceIdentifier"].as_slice();
    let state_machine = ["StateMachineArn"].as_slice();
    [
        ("AWS/Lambda", "IteratorAge", function),
        ("AWS/Lambda", "Invocations", function),
        ("AWS/Lambda", "Errors", function),
        ("AWS/Lambda", "Throttles", function),
        ("AWS/Lambda", "ConcurrentExecutions", function),
        ("AWS/Lambda", "DestinationDeliveryFailures", function),
        ("AWS/Lambda", "PolledEventCount", mapping),
        ("AWS/Lambda", "DroppedEventCount", mapping),
        ("AWS/S3", "PutRequests", &["BucketName", "FilterId"]),
        ("AWS/S3", "NumberOfObjects", &["BucketName", "StorageType"]),
        ("AWS/S3", "OperationsFailedReplication", &["SourceBucket", "DestinationBucket", "RuleId"]),
        ("AWS/RDS", "DatabaseConnections", instance),
        ("AWS/RDS", "CPUUtilization", instance),
        ("AWS/RDS", "FreeStorageSpace", instance),
        ("AWS/DynamoDB", "ConsumedWriteCapacityUnits", &["TableName"]),
        ("AWS/ElastiCache", "EngineCPUUtilization", &["CacheClusterId"]),
        ("AWS/ElastiCache", "Evictions", &["CacheClusterId"]),
        ("AWS/States", "ExecutionsStarted", state_machine),
        ("AWS/States", "ExecutionsSucceeded", state_machine),
        ("AWS/States", "ExecutionsFailed", state_machine),
        ("AWS/States", "ExecutionsTimedOut", state_machine),
        ("AWS/States", "ExecutionsAborted", state_machine),
        ("AWS/Events", "InvocationsFailedToBeSentToDlq", &["RuleName"]),
        ("AWS/SQS", "ApproximateAgeOfOldestMessage", &["QueueName"]),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible", &["QueueName"]),
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
    let text = |value: &Json| value.as_str().expect("text").to_owned();
    let mut emitted = BTreeSet::new();
    for directive in line["_aws"]["CloudWatchMetrics"].as_array().expect("directives") {
        let dimensions: Vec<String> =
            list(&directive["Dimensions"][0]).into_iter().map(text).collect();
        assert!(dimensions.iter().all(|name| line[name].is_string()), "{line}");
        for metric in directive["Metrics"].as_array().expect("metrics") {
            let metric = text(&metric["Name"]);
            emitted.insert((text(&directive["Namespace"]), metric, dimensions.clone()));
        }
    }
    let of_mappings = ["FunctionName", "Table"].map(str::to_owned).to_vec();
    let age = ("Projector".to_owned(), "OldestRecordAge".to_owned(), of_mappings);
    assert!(emitted.contains(&age), "`backfill ready` asks for it: {emitted:?}");
    emitted
}

#[tokio::test]
async fn alarms_and_dashboard_show_metrics_that_are_emitted() {
    let mut emitted = emitted_by_the_projector().await;
    emitted.extend(emitted_by_aws());
    let mut watched = BTreeSet::new();
    let mut visit = |value: &Json| {
        let (Some(namespace), Some(metric)) =
            (value["Namespace"].as_str(), value["MetricName"].as_str())
        else {
            return;
        };
        let dimensions = value["Dimensions"].as_array().into_iter().flatten();
        let dimensions =
            dimensions.map(|dimension| dimension["Name"].as_str().expect("a name").to_owned());
        watched.insert((namespace.to_owned(), metric.to_owned(), dimensions.collect::<Vec<_>>()));
    };
    for name in TEMPLATES {
        walk(&template(name)["Resources"], &mut visit);
    }
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
        "FreeStorageSpace",
        "CPUUtilization",
        "PolledEventCount",
        "DroppedEventCount",
        "OperationsFailedReplication",
        "EngineCPUUtilization",
        "Evictions",
        "InvocationsFailedToBeSentToDlq",
        "ApproximateAgeOfOldestMessage",
        "ApproximateNumberOfMessagesVisible",
        "ExecutionsFailed",
        "ExecutionsTimedOut",
        "ExecutionsAborted",
    ] {
        assert!(watched.iter().any(|(_, metric, _)| metric == needed), "no alarm on {needed}");
    }
    for (place, alarm) in resources("AWS::CloudWatch::Alarm") {
        assert_eq!(alarm["Properties"]["AlarmActions"], json!([{ "Ref": "TopicArn" }]), "{place}");
        assert!(alarm["Properties"]["TreatMissingData"].is_string(), "{place}");
    }

    for name in ["alarms", "reconcile"] {
        let shown = on_the_dashboard(template(name));
        let unknown: Vec<_> = shown.difference(&emitted).collect();
        assert!(unknown.is_empty(), "{name}: shown, and emitted by nobody: {unknown:?}");
    }
    let shown = on_the_dashboard(template("alarms"));
    for metric in emitted.iter().filter(|(namespace, ..)| namespace == "Projector") {
        assert!(shown.contains(metric), "{metric:?} is not on the dashboard");
    }
}

/// The dashboard's metrics, its shorthand (`.` for what stands above, `...` for all of it) written
/// out.
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

/// What stands in an alarm's name after its stack's.
fn name_of(alarm: &Json) -> &str {
    let name = alarm["Properties"]["AlarmName"]["Fn::Sub"].as_str().expect("a name");
    name.split_once("}-").expect("the stack's name first").1
}

/// Whoever is woken reads the description first: it ends with the place that says what to do, which
/// is the anchor of this alarm above a heading. The table of alarms has each by its name.
#[test]
fn each_alarm_names_a_section_of_the_runbook() {
    const INCIDENTS: &str = "docs/incidents.md";
    let incidents = std::fs::read_to_string(root().join(INCIDENTS)).expect("the incidents");
    let lines: Vec<&str> = incidents.lines().collect();
    let table: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split('|').next())
        .flat_map(|names| names.split('`'))
        .collect();
    let mut names = BTreeSet::new();
    for (place, alarm) in resources("AWS::CloudWatch::Alarm") {
        let description = alarm["Properties"]["AlarmDescription"].as_str().expect("a description");
        let name = name_of(&alarm);
        let expected = format!(" What to do: {INCIDENTS}#{name}");
        assert!(description.ends_with(&expected), "{place} does not say what to do: {description}");
        let anchor = format!("<a id=\"{name}\"></a>");
        let at: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains(&anchor)).collect();
        assert_eq!(at.len(), 1, "{place}: {INCIDENTS} has {} anchors {name}", at.len());
        let next = lines[at[0] + 1..].iter().find(|line| !line.is_empty()).expect("a heading");
        assert!(
            next.starts_with("## "),
            "{place}: no heading after the anchor {name}, but {next:?}"
        );
        assert!(table.contains(name), "{place}: the table of alarms has no `{name}`");
        assert!(names.insert(name.to_owned()), "{place}: another alarm is called {name}");
    }
}

/// Both mappings invoke one function: its metrics stay well when one of the two stops. So each has
/// alarms of its own, in its own stack, which follow it when a new stream replaces it and go when
/// it goes.
#[test]
fn one_mapping_that_stops_is_not_hidden_by_the_other() {
    let template = template("projector");
    let watched = json!({ "Fn::And": [
        { "Condition": "HasMappings" },
        { "Fn::Not": [{ "Fn::Equals": [{ "Ref": "TopicArn" }, ""] }] },
    ] });
    assert_eq!(template["Conditions"]["WatchesMappings"], watched);
    for table in ["Sessions", "Scans"] {
        let mapping = json!([{
            "Name": "EventSourceMappingUUID",
            "Value": { "Ref": format!("{table}Mapping") },
        }]);
        let silent = &template["Resources"][format!("{table}Silent")];
        assert_eq!(silent["Condition"], "WatchesMappings", "{table}");
        let properties = &silent["Properties"];
        assert_eq!(properties["Threshold"], 0);
        assert_eq!(properties["ComparisonOperator"], "GreaterThanThreshold");
        let metrics = properties["Metrics"].as_array().expect("metrics");
        let of = |id: &str| metrics.iter().find(|metric| metric["Id"] == id).expect("a metric");
        assert_eq!(of("silent")["Expression"], "IF(FILL(polled, 0) == 0, FILL(written, 0), 0)");
        let polled = &of("polled")["MetricStat"]["Metric"];
        assert_eq!(polled["MetricName"], "PolledEventCount");
        assert_eq!(polled["Dimensions"], mapping);
        let written = &of("written")["MetricStat"]["Metric"];
        assert_eq!(written["MetricName"], "ConsumedWriteCapacityUnits");
        let export = json!({ "Fn::Sub": format!("${{DataStack}}-{table}Table") });
        assert_eq!(written["Dimensions"][0]["Value"]["Fn::ImportValue"], export);

        let dropped = &template["Resources"][format!("{table}Dropped")];
        assert_eq!(dropped["Condition"], "WatchesMappings", "{table}");
        assert_eq!(dropped["Properties"]["MetricName"], "DroppedEventCount");
        assert_eq!(dropped["Properties"]["Dimensions"], mapping);
        assert_eq!(dropped["Properties"]["Threshold"], 0);
    }
    // What wakes somebody is in the file that a team fills in.
    for environment in ["old", "new"] {
        let given = super::overrides(&super::FILES["samconfig.toml"][environment]);
        assert!(given.contains_key("TopicArn"), "{environment} has no alarms of its mappings");
    }
}

/// A new projector begins with records that are a day old. While their age falls there is nothing
/// to lose; once `MaximumRecordAgeSeconds` is set, records leave the stream's care after 22 hours,
/// and the alarm comes before.
#[test]
fn losing_fires_before_records_expire_and_not_while_a_projector_catches_up() {
    let alarms = template("alarms");
    let metrics = alarms["Resources"]["Losing"]["Properties"]["Metrics"].as_array();
    let metrics = metrics.expect("metrics");
    assert_eq!(metrics[0]["Expression"], "IF(DIFF(age) > 0, age, 0)");
    assert_eq!(metrics[1]["MetricStat"]["Metric"]["MetricName"], "IteratorAge");
    assert_eq!(metrics[1]["MetricStat"]["Stat"], "Maximum");
    let late = &alarms["Resources"]["Late"]["Properties"];
    assert_eq!(
        (&late["MetricName"], &late["Statistic"]),
        (&json!("IteratorAge"), &json!("Maximum"))
    );

    let given = super::overrides(&super::FILES["samconfig.toml"]["old"]);
    let limit: i64 = given["MaximumRecordAgeSeconds"].parse().expect("a number");
    assert_eq!(limit, 79_200, "22 hours: two less than a stream keeps");
    let latest = alarms["Parameters"]["LosingSeconds"]["MaxValue"].as_i64().expect("a number");
    assert!(latest + 3600 <= limit, "an alarm at {latest} s leaves no time");
}

/// Any node may be the primary, so an alarm looks at all of them; a cache that says nothing is one
/// that is away.
#[test]
fn each_node_of_the_cache_is_watched() {
    let cache = template("cache");
    let most = cache["Parameters"]["Nodes"]["MaxValue"].as_u64().expect("a number");
    for (id, missing) in [("CacheCpu", "breaching"), ("CacheEvicting", "ignore")] {
        let alarm = &cache["Resources"][id];
        assert_eq!(alarm["Condition"], "Watched", "{id}");
        assert_eq!(alarm["Properties"]["TreatMissingData"], missing, "{id}");
        let metrics = alarm["Properties"]["Metrics"].as_array().expect("metrics");
        assert_eq!(metrics[0]["Expression"], "MAX(METRICS())", "{id}");
        let nodes: Vec<&Json> = metrics[1..]
            .iter()
            .map(|metric| metric["Fn::If"].get(1).unwrap_or(metric))
            .map(|metric| &metric["MetricStat"]["Metric"]["Dimensions"][0]["Value"])
            .collect();
        let named = |node: u64| json!({ "Fn::Sub": format!("${{Cache}}-{node:03}") });
        assert_eq!(nodes, (1..=most).map(named).collect::<Vec<_>>().iter().collect::<Vec<_>>());
        // A node that is not there says nothing for ever.
        assert_eq!(metrics[3]["Fn::If"][0], "HasThirdNode", "{id}");
    }
    let third = json!({ "Fn::Equals": [{ "Ref": "Nodes" }, "3"] });
    assert_eq!(cache["Conditions"]["HasThirdNode"], third);
}

/// Each way in which a consumer can lack an object has an alarm, on the queue that it concerns.
#[test]
fn whatever_a_consumer_lacks_is_noticed() {
    let fanout = template("fanout");
    let of_queue = |queue: &str| json!({ "Fn::GetAtt": [queue, "QueueName"] });
    for (id, metric, value) in [
        ("DeadLettersWaiting", "ApproximateNumberOfMessagesVisible", of_queue("DeadLetters")),
        ("ConsumerBehind", "ApproximateAgeOfOldestMessage", of_queue("Queue")),
        ("EventsLost", "InvocationsFailedToBeSentToDlq", json!({ "Ref": "Rule" })),
    ] {
        let alarm = &fanout["Resources"][id];
        assert_eq!(alarm["Condition"], "Watched", "{id}");
        assert_eq!(alarm["Properties"]["MetricName"], metric, "{id}");
        assert_eq!(alarm["Properties"]["Dimensions"][0]["Value"], value, "{id}");
    }
    let waiting = &fanout["Resources"]["DeadLettersWaiting"]["Properties"];
    assert_eq!((&waiting["Threshold"], &waiting["Statistic"]), (&json!(0), &json!("Maximum")));
    let kept = fanout["Resources"]["Queue"]["Properties"]["MessageRetentionPeriod"].as_i64();
    let late = fanout["Parameters"]["LateSeconds"]["Default"].as_i64();
    assert!(kept > late.map(|late| late * 100), "there is time to act");
    for environment in ["cache", "fanout"] {
        let given = super::overrides(&super::FILES["samconfig.toml"][environment]);
        assert!(given.contains_key("TopicArn"), "{environment} has no alarms");
    }
}

/// One rule of a replication has one id, which the metrics carry.
#[test]
fn the_alarm_of_a_replication_is_that_of_its_rule() {
    let archive = template("archive");
    let alarm = &archive["Resources"]["ReplicationFailed"];
    assert_eq!(alarm["Condition"], "WatchesReplication");
    let bucket = &archive["Resources"]["Bucket"]["Properties"];
    let rule = &bucket["ReplicationConfiguration"]["Fn::If"][1]["Rules"][0];
    let dimensions = alarm["Properties"]["Dimensions"].as_array().expect("dimensions");
    let of = |name: &str| {
        let dimension = dimensions.iter().find(|dimension| dimension["Name"] == name);
        &dimension.expect("a dimension")["Value"]
    };
    assert_eq!(of("RuleId"), &rule["Id"]);
    assert_eq!(of("DestinationBucket"), &json!({ "Ref": "ReplicateTo" }));
    assert_eq!(
        rule["Destination"]["Metrics"]["Status"], "Enabled",
        "without it nothing is counted"
    );
}
