//! The built binary, as users and scripts run it: what it prints where, and how it exits.

#[cfg(test)]
mod cli {
    mod alone;
    mod asking;
    mod run;
    mod trace;
    mod whoami;
}
