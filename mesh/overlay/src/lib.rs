//! VXLAN links, bridges, routes and neighbours; attaching a network namespace
