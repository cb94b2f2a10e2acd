//! Containers that no Swarm started, and the services that their labels describe.

use std::collections::BTreeMap;

use portolan_model::{NameError, Service, ServiceId};
use portolan_provider::{LABEL_PREFIX, Labels, check_alias};

use super::{Finding, Origin, ServiceWanted, network::Networks, version};
use crate::observed::{Container, Observed};

const PROJECT_LABEL: &str = "com.docker.compose.project";
const SERVICE_LABEL: &str = "com.docker.compose.service";
const NUMBER_LABEL: &str = "com.docker.compose.container-number";
const NAME_LABEL: &str = "portolan.service";

/// What a container's labels say of the service that it is a task of.
pub(super) struct Plain {
    pub(super) service: Service,
    pub(super) labels: Labels,
    /// Its number by Compose.
    pub(super) number: Option<u32>,
}

/// Whether a container asks to be a task of a service.
pub(super) fn is_labelled(container: &Container) -> bool {
    let mut names = container.labels.keys();
    names.any(|name| name.starts_with(LABEL_PREFIX))
}

/// Reads the labels of a container that asks to be a task.
///
/// # Errors
/// No name for the service can be made.
pub(super) fn read(container: &Container) -> Result<Plain, NameError> {
    let label = |name: &str| container.labels.get(name).filter(|text| !text.is_empty());
    let (project, short) = (label(PROJECT_LABEL), label(SERVICE_LABEL));
    let default = match project.zip(short) {
        Some((project, short)) => format!("{project}_{short}"),
        None => container.name.clone(),
    };
    let source = format!("container {}", container.name);
    let given = label(NAME_LABEL).and_then(|name| name.parse::<ServiceId>().ok());
    let id = match given {
        Some(id) => id,
        None => default.parse()?,
    };
    let mut service = Service {
        created_ms: container.created_ms,
        spec_version: version::of_time(container.started_ms),
        stack: project
            .filter(|project| short.is_some() && project.parse::<ServiceId>().is_ok())
            .cloned(),
        ..Service::new(id)
    };
    let labels = container.labels.iter();
    let labels = labels.map(|(name, text)| (name.as_str(), text.as_str()));
    let labels = Labels::apply(labels, &source, &mut service);
    for place in &mut service.networks {
        let short = short.filter(|short| **short != service.name);
        let alias = short.and_then(|short| check_alias(short).ok());
        place.aliases.extend(alias);
    }
    Ok(Plain {
        service,
        labels,
        number: label(NUMBER_LABEL).and_then(|text| text.parse().ok()),
    })
}

/// The services that containers here describe. Where those of one service differ, the container made last
/// is right, as after an update; the version is that of the last start, as a service may have been
/// removed while none of its containers ran.
pub(super) fn services(
    observed: &Observed,
    networks: &Networks,
    findings: &mut Vec<Finding>,
) -> Vec<ServiceWanted> {
    let mut containers: Vec<&Container> = observed.containers.iter().collect();
    containers.retain(|container| super::task::is_plain(container) && is_labelled(container));
    containers.sort_by_key(|container| (container.created_ms, &container.id));
    let mut services: BTreeMap<ServiceId, ServiceWanted> = BTreeMap::new();
    for container in containers {
        let Plain {
            mut service,
            labels,
            ..
        } = match read(container) {
            Ok(plain) => plain,
            Err(error) => {
                let source = format!("container {}", container.name);
                let message = format!("its name makes no name of a service: {error}");
                let remedy = "give the service a name by the label portolan.service";
                findings.push(Finding::new(None, &source, "", &message, remedy));
                continue;
            }
        };
        findings.extend(labels.wrong.into_iter().map(|diagnostic| Finding {
            service: Some(service.id.clone()),
            diagnostic,
        }));
        if !(labels.enabled && labels.declares && labels.fits) {
            continue;
        }
        let on_ours = container.networks.iter();
        let on_ours = on_ours.filter_map(|endpoint| networks.name(&endpoint.id));
        for name in on_ours {
            if service.networks.iter().all(|place| place.name != *name) {
                service.networks.push(portolan_model::ServiceNetwork {
                    name: name.clone(),
                    aliases: Vec::new(),
                    vip: None,
                });
            }
        }
        if let Some(older) = services.get(&service.id) {
            service.created_ms = service.created_ms.min(older.service.created_ms);
            service.spec_version = service.spec_version.max(older.service.spec_version);
        }
        let wanted = ServiceWanted {
            service,
            origin: Origin::Engine,
            left_to_docker: Vec::new(),
        };
        services.insert(wanted.service.id.clone(), wanted);
    }
    services.into_values().collect()
}
