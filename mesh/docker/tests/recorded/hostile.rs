//! JSON that no engine should give.

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use crate::recording::{diagnostics, manager, observe, service, services, wanted, worker};

#[test]
fn an_object_that_makes_no_sense_is_told_and_the_others_are_there() {
    let mut engine = manager();
    let ports = &mut service(&mut engine, "web")["Spec"]["EndpointSpec"]["Ports"];
    ports[0]["TargetPort"] = json!(70_000);
    let wanted = wanted(&engine);
    assert!(services(&wanted).contains("udp 5353:5353/udp"));
    assert!(!services(&wanted).contains("\nweb "));
    let told = diagnostics(&wanted);
    let told = told.iter().find(|d| d.starts_with("service web:")).unwrap();
    assert!(
        told.contains("makes no sense: Spec.EndpointSpec.Ports[0].TargetPort: invalid value: integer `70000`, expected u16"),
        "{told}"
    );
    let of_web = wanted.diagnostics.iter().filter_map(|d| d.service.as_ref());
    assert!(
        of_web
            .into_iter()
            .any(|id| id.as_str() == "6yr3oa7kp2kwkz0ypn4g3b2d0")
    );
}

#[test]
fn nulls_and_missing_fields_are_borne_with() {
    let mut engine = manager();
    for service in engine["services"].as_array_mut().unwrap() {
        service["Spec"]["Labels"] = json!(null);
        service["Spec"]["TaskTemplate"] = json!(null);
        service["Endpoint"] = json!(null);
        service["Unheard"] = json!({"of": [1, 2, 3]});
    }
    engine["networks"] = json!(null);
    let wanted = wanted(&engine);
    assert_eq!(wanted.diagnostics, []);
    assert!(services(&wanted).contains("web 8080:80/tcp"));
}

#[test]
fn what_is_no_list_is_told() {
    let mut engine = manager();
    engine["services"] = json!({"message": "no"});
    let told = diagnostics(&wanted(&engine));
    assert!(
        told[0].contains("the engine gives no list of them"),
        "{told:?}"
    );
    engine["services"] = json!([1, "x", {"Spec": {"Name": "web"}}]);
    let told = diagnostics(&wanted(&engine)).join("\n");
    assert!(
        told.contains("service web: what the engine says of it makes no sense: it has no identity")
    );
}

#[test]
fn text_of_the_engine_cannot_reach_a_terminal_as_it_is() {
    let mut engine = manager();
    let ports = &mut service(&mut engine, "web")["Spec"];
    ports["Name"] = json!("\u{1b}[2Jweb");
    ports["EndpointSpec"]["Ports"][0]["Protocol"] = json!("\u{7}x");
    for told in diagnostics(&wanted(&engine)) {
        assert!(!told.contains(char::is_control), "{told:?}");
    }
}

/// Every place of a JSON value.
fn places(json: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match json {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{key}"), all);
            }
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                places(value, &format!("{at}/{i}"), all);
            }
        }
        _ => {}
    }
}

fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        "[a-z0-9.:/,-]{0,80}".prop_map(Value::from),
        "portolan.[a-z_.]{0,10}".prop_map(|key| json!({key: "x"})),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null, {}, "x", 1])),
        Just(json!({"portolan.publish": "1-65535:1-65535", "portolan.health.http": "\u{0}"})),
        Just(json!("9999-99-99T99:99:99Z")),
        Just(json!("0".repeat(5000))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// What becomes of it can be published: the rest of the agent relies on that.
    #[test]
    fn whatever_stands_wherever_nothing_panics(
        is_manager: bool,
        changes in prop::collection::vec((any::<Index>(), anything()), 1..6),
    ) {
        let mut engine = if is_manager { manager() } else { worker() };
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&engine, "", &mut all);
            let place = &all[place.index(all.len())];
            *engine.pointer_mut(place).unwrap() = value;
        }
        let wanted = portolan_docker::translate(&observe(&engine));
        for service in wanted.services {
            prop_assert!(portolan_model::Record::Service(service.service).encode().is_ok());
        }
        for finding in wanted.diagnostics {
            let text = finding.diagnostic.to_string();
            prop_assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}
