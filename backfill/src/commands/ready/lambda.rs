//! The Lambda API and DynamoDB's: the functions' mappings and variables, and the streams that the
//! tables have now.

use aws_config::SdkConfig;
use aws_sdk_lambda::Client;
use aws_sdk_lambda::error::SdkError;
use aws_sdk_lambda::operation::list_event_source_mappings::ListEventSourceMappingsError;
use aws_sdk_lambda::types::{EventSourceMappingConfiguration, FunctionResponseType};
use projector::config::{ArchiveConfig, ArchiveObjects};

use super::condition::Asked;
use super::limits::{refused, within};
use super::observed::{Mapping, Table};

/// The alias that releases move (`Release` of `infra/projector.yaml`).
const ALIAS: &str = "live";

/// The mappings of a function, or those of its alias: a list by the function's name leaves those
/// out.
pub(super) async fn mappings(aws: &SdkConfig, function: &str) -> Asked<Vec<Mapping>> {
    let asking = async {
        let client = Client::new(aws);
        let of_function = list(&client, function).await.map_err(|error| said(&error))?;
        if !of_function.is_empty() || function.contains(':') {
            return Ok(of_function);
        }
        match list(&client, &format!("{function}:{ALIAS}")).await {
            Err(error) if is_not_found(&error) => Ok(Vec::new()),
            of_alias => of_alias.map_err(|error| said(&error)),
        }
    };
    within("the Lambda API", asking).await
}

type NotListed = SdkError<ListEventSourceMappingsError>;

fn said(error: &NotListed) -> String {
    refused("lambda:ListEventSourceMappings", error)
}

fn is_not_found(error: &NotListed) -> bool {
    let said = error.as_service_error();
    said.is_some_and(ListEventSourceMappingsError::is_resource_not_found_exception)
}

async fn list(client: &Client, function: &str) -> Result<Vec<Mapping>, NotListed> {
    let pages = client.list_event_source_mappings().function_name(function);
    let mut pages = pages.into_paginator().send();
    let mut mappings = Vec::new();
    while let Some(page) = pages.next().await {
        mappings.extend(page?.event_source_mappings().iter().map(mapping));
    }
    Ok(mappings)
}

fn mapping(seen: &EventSourceMappingConfiguration) -> Mapping {
    let on_failure = seen.destination_config().and_then(|config| config.on_failure());
    Mapping {
        stream_arn: seen.event_source_arn().unwrap_or_default().to_owned(),
        state: seen.state().unwrap_or("not known").to_owned(),
        reports_item_failures: seen
            .function_response_types()
            .contains(&FunctionResponseType::ReportBatchItemFailures),
        last_result: seen.last_processing_result().map(str::to_owned),
        on_failure: on_failure.and_then(|to| to.destination()).map(str::to_owned),
    }
}

/// Where a function writes objects; `None` if it writes none.
pub(super) async fn archive(aws: &SdkConfig, function: &str) -> Asked<Option<ArchiveConfig>> {
    let asking = async {
        let client = Client::new(aws);
        let asked = client.get_function_configuration().function_name(function).send().await;
        let seen = asked.map_err(|error| refused("lambda:GetFunctionConfiguration", &error))?;
        let variables = seen.environment().and_then(|environment| environment.variables());
        let value = |name: &str| {
            let value = variables.and_then(|variables| variables.get(name));
            value.filter(|value| !value.is_empty()).cloned()
        };
        Ok(value("ARCHIVE_BUCKET").map(|bucket| {
            let prefix = value("ARCHIVE_PREFIX");
            let prefix = prefix.unwrap_or_else(|| ArchiveConfig::DEFAULT_PREFIX.to_owned());
            // A function does not start with another value.
            let objects = value("ARCHIVE_OBJECTS").and_then(|name| ArchiveObjects::parse(&name));
            ArchiveConfig { bucket, prefix, objects: objects.unwrap_or_default() }
        }))
    };
    within("the Lambda API", asking).await
}

/// A table, and the stream that it has now.
pub(super) async fn table(aws: &SdkConfig, name: &str) -> Table {
    let asking = async {
        let client = aws_sdk_dynamodb::Client::new(aws);
        let asked = client.describe_table().table_name(name).send().await;
        let seen = asked.map_err(|error| refused("dynamodb:DescribeTable", &error))?;
        let latest = seen.table().and_then(|table| table.latest_stream_arn());
        latest.map(str::to_owned).ok_or_else(|| format!("the table {name} has no stream"))
    };
    let latest_stream = within("the DynamoDB API", asking).await;
    Table { name: name.to_owned(), latest_stream }
}
