"""Everything that a service on one machine opens, bound to loopback.

Ray takes 127.0.0.1 as a node's address only where it believes that the platform has no clusters, so that is what
it is told; then every process of Ray listens on loopback alone. Two things do not follow the node's address and
are dealt with here and in haproxy.py: the server for calls between replicas, and HAProxy's own listeners.
"""

import ipaddress

NODE_IS_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def confine_replica() -> None:
    """In a replica's process, before it is ready: on a node at loopback, take calls from other replicas there only.

    Ray Serve binds that server to all interfaces, and what it reads it unpickles.
    """
    import ray
    from ray.serve._private import replica

    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        return
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
