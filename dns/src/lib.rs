//! Service-name DNS: the zone, the server and the forwarder
