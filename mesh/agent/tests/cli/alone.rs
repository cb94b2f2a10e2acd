//! What needs no agent.

use std::{fs, os::unix::fs::PermissionsExt};

use super::run::{ended, file, portolan, run};

#[test]
fn wrong_flags_are_wrong_input() {
    for args in [
        &["agent", "--no-such-flag"][..],
        &["no-such-command"],
        &["task", "add", "web"],
        &["task", "add", "web", "--pid", "1", "--netns", "/x"],
        &["task", "rm", "../status"],
        &["keys", "use", "nothex"],
        &["nodes", "--format", "xml"],
        &["whoami"],
        &["whoami", "--http", "70000"],
        &[],
    ] {
        let ran = run(args);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(!ran.stderr.is_empty());
    }
}

#[test]
fn the_agent_refuses_its_configuration_with_all_problems_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "p.toml",
        "advertise = '10.0.0.5'\ngosip_port = 1\nhttp = 'x'\n",
    );
    let ran = ended(
        portolan()
            .args([
                "agent",
                "--config",
                &config,
                "--plane",
                "ebfp",
                "--join",
                "10.0.0.1,a:b:c",
            ])
            .env("PORTOLAN_DNS_PORT", "0"),
    );
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    let lines: Vec<_> = ran.stderr.lines().collect();
    let begins = [
        format!("{config}:2: unknown key 'gosip_port'; did you mean gossip_port?"),
        "--join: 'a:b:c' is no member; ".to_owned(),
        format!("{config}:3: http: 'x' is no address with a port; "),
        "--plane: 'ebfp' is no plane; did you mean ebpf?".to_owned(),
        "PORTOLAN_DNS_PORT: '0' is no port; ".to_owned(),
        "key_file: not given, and 10.0.0.5 is reached by others".to_owned(),
    ];
    assert_eq!(lines.len(), begins.len(), "{}", ran.stderr);
    for (line, begin) in lines.iter().zip(&begins) {
        assert!(line.starts_with(begin), "{line}\nis not\n{begin}");
    }
}

#[test]
fn the_agent_refuses_a_wrong_stack_file_before_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let stack = file(
        dir.path(),
        "bad.yml",
        "services:\n  web:\n    ports: ['x:80']\n",
    );
    let state = dir.path().join("state");
    let ran = ended(
        portolan()
            .args(["agent", "--advertise", "127.0.0.1", "--stack", &stack])
            .arg("--state-dir")
            .arg(&state),
    );
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.starts_with(&format!("{stack}:3:")),
        "{}",
        ran.stderr
    );
    assert!(!state.exists());
}

#[test]
fn check_says_what_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "p.toml",
        "name = 'n1'\nadvertise = '10.0.0.5'\ninsecure = true\n",
    );
    let stack = file(
        dir.path(),
        "stack.yml",
        "services:\n  web:\n    image: nginx\n    ports: ['8080:80']\n",
    );
    let ran = run(&["check", "--config", &config, &stack]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "configuration: ok, node n1 at 10.0.0.5");
    assert!(
        lines[1].starts_with(&format!("{stack}: ok, services 1, ")),
        "{}",
        lines[1]
    );
    assert!(
        lines[1].contains("ignored: services.*.image") || lines[1].contains("image"),
        "{}",
        lines[1]
    );
}

#[test]
fn check_says_all_that_is_wrong_in_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "p.toml",
        "advertise = '10.0.0.5'\nlog_format = 'xml'\n",
    );
    let bad = file(
        dir.path(),
        "bad.yml",
        "services:\n  web:\n    ports: ['x:80', '70000:80']\n",
    );
    let ran = run(&["check", "--config", &config, &bad, "/no/such.yml"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    for begin in [
        format!("{config}:2: log_format: "),
        "key_file: not given".to_owned(),
        format!("{bad}:3:"),
        "/no/such.yml: cannot be read: no such file or directory; ".to_owned(),
    ] {
        assert!(
            ran.stderr.lines().any(|line| line.starts_with(&begin)),
            "{begin}: {}",
            ran.stderr
        );
    }
    let of_stack = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with(&bad))
        .count();
    assert_eq!(of_stack, 2, "both ports: {}", ran.stderr);
    let alone = run(&["check", &bad]);
    assert!(
        !alone.stderr.contains("key_file"),
        "only what was given is checked: {}",
        alone.stderr
    );
    let missing = run(&["check", "--config", "/no/such.toml"]);
    assert_eq!(missing.code, 2);
    assert!(
        missing
            .stderr
            .starts_with("/no/such.toml: cannot be read: "),
        "{}",
        missing.stderr
    );
}

#[test]
fn keygen_writes_a_closed_file_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let shown = path.to_str().unwrap();
    let made = run(&["keygen", shown]);
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    let key = fs::read_to_string(&path).unwrap();
    assert!(!made.stdout.contains(key.trim()), "the key is not shown");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let again = run(&["keygen", shown]);
    assert_eq!(again.code, 1);
    assert!(
        again
            .stderr
            .contains("exists, and may hold the key of a cluster"),
        "{}",
        again.stderr
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), key);

    let good = ["check", "--advertise", "10.0.0.5", "--key-file", shown];
    assert_eq!(run(&good).code, 0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let open = run(&good);
    assert_eq!(open.code, 2);
    assert!(
        open.stderr.contains(&format!("`chmod 600 {shown}`")),
        "{}",
        open.stderr
    );
}

#[test]
fn keygen_without_a_file_prints_a_key_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = [run(&["keygen"]), run(&["keygen"])];
    assert_ne!(first.stdout, second.stdout);
    let path = file(dir.path(), "key", &first.stdout);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(
        run(&["check", "--advertise", "10.0.0.5", "--key-file", &path]).code,
        0
    );
}

#[test]
fn no_agent_is_told_with_the_socket_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let shown = socket.to_str().unwrap();
    for args in [
        &["status"][..],
        &["task", "drain", "t1"],
        &["leave"],
        &["keys"],
    ] {
        let ran = ended(portolan().args(args).env("PORTOLAN_SOCKET", shown));
        assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{args:?}");
        assert!(
            ran.stderr
                .contains(&format!("no agent at {shown}: the socket does not exist")),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("portolan agent --advertise"));
    }
    // A listener that is gone leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let ran = run(&["--socket", shown, "nodes"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("nothing listens"), "{}", ran.stderr);
}

#[test]
fn completions_know_the_commands() {
    let ran = run(&["completion", "bash"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stdout.contains("keygen"));
    assert!(ran.stdout.contains("--data-path-port"));
}

#[test]
fn every_command_has_help() {
    for command in [
        "agent",
        "demo",
        "whoami",
        "status",
        "nodes",
        "networks",
        "services",
        "tasks",
        "flows",
        "trace",
        "attach",
        "detach",
        "apply",
        "rm",
        "leave",
        "keys",
        "keygen",
        "check",
        "completion",
    ] {
        let ran = run(&[command, "--help"]);
        assert_eq!(ran.code, 0, "{command}");
        if command != "demo" {
            assert!(ran.stdout.contains("Example: "), "{command}");
        }
    }
}
