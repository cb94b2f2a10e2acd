//! The built binary, as users and scripts run it: what it prints where, and how it exits.

mod cli {
    mod alone;
    mod asking;
    mod run;
    mod whoami;
}
