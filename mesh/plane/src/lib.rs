//! The DataPlane trait, Plan, Reconciler, and the fake and faulty planes of the tests
