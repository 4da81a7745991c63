//! Both contracts against the live daemon: a member that is removed or changed fails here.
//!
//! D-Bus: the introspection data of the live objects must have the members of proto/dbus/*.xml.
//! gRPC: what reflection tells must be proto/contract/nestd.v1.txt, line by line. After a change by
//! addition, write that file anew with `UPDATE_CONTRACT=1` and look at the difference.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use nestd_client::{ask, v1::SessionOptions};
use nestd_proto::dbus::{
    GOVERNOR_XML, MANAGER_XML, NAME, PATH, REQUEST_XML, SESSION_PATH, SESSION_XML,
};
use nestd_tests::{Builder, Daemon, project};
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use zbus_xml::{ArgDirection, Interface, Node};

/// A channel without the client library.
pub async fn channel(daemon: &Daemon) -> Channel {
    let socket = daemon.socket();
    Endpoint::from_static("http://nestd.invalid")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// The members of an interface, a line each.
fn members(interface: &Interface<'_>) -> BTreeSet<String> {
    let args = |args: &[zbus_xml::Arg<'_>], signal: bool| {
        let args = args.iter().map(|arg| {
            let direction = match arg.direction() {
                _ if signal => "",
                Some(ArgDirection::Out) => "out ",
                Some(ArgDirection::In) | None => "in ",
            };
            format!("{direction}{} {}", arg.ty(), arg.name().unwrap_or("?"))
        });
        args.collect::<Vec<_>>().join(", ")
    };
    let methods = interface
        .methods()
        .map(|method| format!("method {}({})", method.name(), args(method.args(), false)));
    let signals = interface
        .signals()
        .map(|signal| format!("signal {}({})", signal.name(), args(signal.args(), true)));
    let properties = interface.properties().map(|property| {
        let emits = property
            .annotations()
            .iter()
            .find(|annotation| annotation.name().ends_with("EmitsChangedSignal"))
            .map_or("true", |annotation| annotation.value());
        let access = property.access();
        let (read, write) = (access.read(), access.write());
        format!("property {} {} {read} {write} {emits}", property.ty(), property.name())
    });
    methods.chain(signals).chain(properties).collect()
}

async fn live(bus: &zbus::Connection, path: &str, interface: &str) -> BTreeSet<String> {
    let reply = bus
        .call_method(
            Some(NAME),
            path,
            Some("org.freedesktop.DBus.Introspectable"),
            "Introspect",
            &(),
        )
        .await
        .unwrap();
    let xml: String = reply.body().deserialize().unwrap();
    let node = Node::from_reader(xml.as_bytes()).unwrap();
    let found = node.interfaces().iter().find(|found| found.name().as_str() == interface);
    members(found.unwrap_or_else(|| panic!("{path} has no {interface}:\n{xml}")))
}

fn written(xml: &str) -> BTreeSet<String> {
    let node = Node::from_reader(xml.as_bytes()).unwrap();
    members(&node.interfaces()[0])
}

#[tokio::test]
async fn the_live_interfaces_are_those_of_the_xml_files() {
    let daemon = Builder::sim().start();
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    assert_eq!(live(&bus, PATH, "org.nestd.Manager1").await, written(MANAGER_XML));
    assert_eq!(live(&bus, PATH, "org.nestd.Governor1").await, written(GOVERNOR_XML));

    let client = daemon.dbus().await;
    let id = client.create_session(Vec::new(), SessionOptions::default()).await.unwrap();
    let path = format!("{SESSION_PATH}/{id}");
    assert_eq!(live(&bus, &path, "org.nestd.Session1").await, written(SESSION_XML));
    let _running = client.generate(ask("word ".repeat(500))).await.unwrap();
    let mut path = "/org/nestd/Nestd1/request".to_owned();
    for _ in 0..2 {
        let reply = bus
            .call_method(
                Some(NAME),
                path.as_str(),
                Some("org.freedesktop.DBus.Introspectable"),
                "Introspect",
                &(),
            )
            .await
            .unwrap();
        let xml: String = reply.body().deserialize().unwrap();
        let node = Node::from_reader(xml.as_bytes()).unwrap();
        path = format!("{path}/{}", node.nodes()[0].name().unwrap());
    }
    assert_eq!(live(&bus, &path, "org.nestd.Request1").await, written(REQUEST_XML));
}

#[tokio::test]
async fn reflection_tells_the_written_contract() {
    let daemon = Builder::sim().without_bus().start();
    let mut files = BTreeMap::new();
    for service in ["Governor", "Inference", "Models", "Sessions", "Status"] {
        for file in reflect(channel(&daemon).await, &format!("nestd.v1.{service}")).await {
            files.insert(file.name().to_owned(), file);
        }
    }
    let mut lines = BTreeSet::new();
    for file in files.values() {
        describe(file, &mut lines);
    }
    let live = lines.into_iter().fold(String::new(), |text, line| text + &line + "\n");
    let path = project().join("proto/contract/nestd.v1.txt");
    if std::env::var_os("UPDATE_CONTRACT").is_some() {
        std::fs::write(&path, &live).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let (live, written): (BTreeSet<_>, BTreeSet<_>) =
        (live.lines().collect(), written.lines().collect());
    let gone: Vec<_> = written.difference(&live).collect();
    assert!(gone.is_empty(), "removed or changed: {gone:#?}");
    let new: Vec<_> = live.difference(&written).collect();
    assert!(new.is_empty(), "not in {} yet: {new:#?}", path.display());
}

/// The file that defines a symbol, and the files of the package that it imports.
async fn reflect(channel: Channel, symbol: &str) -> Vec<FileDescriptorProto> {
    let mut client = ServerReflectionClient::new(channel);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(symbol.into())),
    };
    let imports = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileByFilename("nestd/v1/types.proto".into())),
    };
    let requests = futures::stream::iter([request, imports]);
    let mut replies = client.server_reflection_info(requests).await.unwrap().into_inner();
    let mut files = Vec::new();
    while let Some(reply) = replies.next().await {
        let Some(MessageResponse::FileDescriptorResponse(found)) = reply.unwrap().message_response
        else {
            panic!("reflection does not know {symbol}");
        };
        for bytes in found.file_descriptor_proto {
            files.push(FileDescriptorProto::decode(bytes.as_slice()).unwrap());
        }
    }
    files
}

fn describe(file: &FileDescriptorProto, lines: &mut BTreeSet<String>) {
    let package = file.package();
    for service in &file.service {
        for method in &service.method {
            let stream = |yes: bool| if yes { "stream " } else { "" };
            lines.insert(format!(
                "rpc {package}.{}/{} ({}{}) returns ({}{})",
                service.name(),
                method.name(),
                stream(method.client_streaming()),
                method.input_type(),
                stream(method.server_streaming()),
                method.output_type(),
            ));
        }
    }
    for message in &file.message_type {
        describe_message(package, message, lines);
    }
    for kind in &file.enum_type {
        describe_enum(package, kind, lines);
    }
}

fn describe_message(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    lines.insert(format!("message {name}"));
    for field in &message.field {
        lines.insert(format!("field {name} {}", describe_field(message, field)));
    }
    for nested in &message.nested_type {
        describe_message(&name, nested, lines);
    }
}

fn describe_field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        _ if field.proto3_optional() => "optional ",
        _ => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_ascii_lowercase(),
    };
    let group = field
        .oneof_index
        .filter(|_| !field.proto3_optional())
        .and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?))
        .map_or_else(String::new, |group| format!(" in {}", group.name()));
    format!("{}: {label}{kind} {}{group}", field.number(), field.name())
}

fn describe_enum(scope: &str, kind: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &kind.value {
        lines.insert(format!("enum {scope}.{} {}: {}", kind.name(), value.number(), value.name()));
    }
}

#[tokio::test]
async fn health_is_served() {
    let daemon = Builder::sim().without_bus().start();
    let mut health = HealthClient::new(channel(&daemon).await);
    for service in
        ["", "nestd.v1.Governor", "nestd.v1.Inference", "nestd.v1.Models", "nestd.v1.Status"]
    {
        let request = HealthCheckRequest { service: service.into() };
        let reply = health.check(request).await.unwrap().into_inner();
        assert_eq!(reply.status().as_str_name(), "SERVING", "{service:?}");
    }
    let request = HealthCheckRequest { service: "nestd.v1.Nothing".into() };
    assert_eq!(health.check(request).await.unwrap_err().code(), tonic::Code::NotFound);
}
