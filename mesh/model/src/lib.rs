//! Portolan's vocabulary, the catalog of all records, and its snapshots
