//! What runs here: the Provider trait and stack files
