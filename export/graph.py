"""Finding one's way in an ONNX graph, and changing it.

Nodes are told apart by ``id``: a graph hands out one Python object a node for as long as somebody holds it, which the
dictionaries of :func:`makers_of` and :func:`readers_of` do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

LAYERS = frozenset({"Conv", "MatMul", "Gemm"})
"""What has weights."""


def unify_opset(model: onnx.ModelProto) -> None:
    """Leaves one entry a domain; merging two graphs leaves one of each, and ONNX Runtime's tools want one."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drops the initialisers that nobody reads, and what was noted about types, which may hold no more."""
    used = {name for node in graph.node for name in reads(node)} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]


def network_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes from the first layer to the last ones; all of the graph's have names.

    Nodes that compute with whole numbers, about shapes, are not among them.
    """
    graph = model.graph
    makers = makers_of(graph)
    last = last_layers(graph, makers)
    inner = before(last, makers) | {id(node) for node in last}
    if not last:  # a backbone's maps may come from anywhere
        inner = before_names([output.name for output in graph.output], makers)
    floats = float_tensors(model) | {output.name for output in graph.output}
    readers = readers_of(graph)
    # From the first layer on: what only normalising leads to is left out.
    behind: set[int] = set()
    todo = [node for node in graph.node if node.op_type in LAYERS and id(node) in inner]
    while todo:
        node = todo.pop()
        if id(node) not in behind:
            behind.add(id(node))
            todo += [reader for name in node.output for reader in readers[name]]
    return {node.name for node in graph.node if id(node) in inner & behind and set(node.output) <= floats}


def last_layers(graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The convolutions and matrix products that one meets first from behind."""
    todo, seen, last = [output.name for output in graph.output], set(), []
    while todo:
        node = makers.get(todo.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in LAYERS:
            last.append(node)
        else:
            todo += reads(node)
    return last


def before(last: Iterable[onnx.NodeProto], makers: dict[str, onnx.NodeProto]) -> set[int]:
    """Identities of the nodes that some nodes depend on."""
    return before_names([name for node in last for name in node.input], makers)


def before_names(names: Iterable[str], makers: dict[str, onnx.NodeProto]) -> set[int]:
    """Identities of the nodes that some tensors depend on."""
    inner: set[int] = set()
    todo = list(names)
    while todo:
        node = makers.get(todo.pop())
        if node is not None and id(node) not in inner:
            inner.add(id(node))
            todo += reads(node)
    return inner


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {entry.name for entry in graph.value_info if entry.type.tensor_type.elem_type == TensorProto.FLOAT}


def reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, also inside its own graphs."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        names += [name for inner in attribute.g.node for name in reads(inner)]
        names += [output.name for output in attribute.g.output]
    return names


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Name of a tensor -> the node that makes it."""
    return {name: node for node in graph.node for name in node.output}


def readers_of(graph: onnx.GraphProto) -> defaultdict[str, list[onnx.NodeProto]]:
    """Name of a tensor -> the nodes that read it."""
    found: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(reads(node)):
            found[name].append(node)
    return found


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Puts every node behind those that it reads from, as ONNX wants them; not every tool leaves them so."""
    makers = makers_of(graph)
    done: dict[int, onnx.NodeProto] = {}
    todo = [(node, False) for node in reversed(graph.node)]
    while todo:
        node, ready = todo.pop()
        if id(node) in done:
            continue
        if ready:
            done[id(node)] = node
            continue
        todo.append((node, True))
        todo += [(makers[name], False) for name in reads(node) if name in makers and id(makers[name]) not in done]
    replace_nodes(graph, done.values())


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Gives a graph these nodes, in this order, in place of its own."""
    copies = list(nodes)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in copies]
    del graph.node[:]
    graph.node.extend(kept)
