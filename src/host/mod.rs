//! World on real hosts: ssh, the agent, libvirt through the agent; or local.
