"""A Ray cluster of fake GPUs on this host, as long as standard input is open.

Prints its address. Then each line of input adds a node ("add"), or removes the one added last
("remove"), and a line of output follows when that is done.
"""

import sys

from ray.cluster_utils import Cluster

NODE = {
    "num_cpus": 2,
    "num_gpus": 2,
    "include_dashboard": False,
    "object_store_memory": 100 * 2**20,
}

cluster = Cluster(initialize_head=True, head_node_args=NODE)
print(cluster.address, flush=True)
nodes = []
for line in sys.stdin:
    if line.strip() == "add":
        nodes.append(cluster.add_node(**NODE))
        cluster.wait_for_nodes()
    else:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
