"""Small networks of every kind, made in place: an initializer's name ends in its shape."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import onnx

from lrp_onnx.graph import Graph, load

_BLOCK = """ln{k} = LayerNormalization(z{k}, g{k}a_8, h{k}a_8)
    q{k}l = MatMul(ln{k}, wq{k}_8_8) q{k}a = Add(q{k}l, bq{k}_8) q{k}s = Reshape(q{k}a, heads)
    q{k} = Transpose<perm=[0,2,1,3]>(q{k}s)
    k{k}l = MatMul(ln{k}, wk{k}_8_8) k{k}s = Reshape(k{k}l, heads) k{k} = Transpose<perm=[0,2,3,1]>(k{k}s)
    v{k}l = MatMul(ln{k}, wv{k}_8_8) v{k}s = Reshape(v{k}l, heads) v{k} = Transpose<perm=[0,2,1,3]>(v{k}s)
    qk{k} = MatMul(q{k}, k{k}) d{k} = Div(qk{k}, two) {mask} s{k} = Softmax(m{k}) a{k} = MatMul(s{k}, v{k})
    at{k} = Transpose<perm=[0,2,1,3]>(a{k}) ar{k} = Reshape(at{k}, joined) o{k} = MatMul(ar{k}, wo{k}_8_8)
    ob{k} = Add(o{k}, bo{k}_8) y{k} = Add(ob{k}, z{k}) lm{k} = LayerNormalization(y{k}, g{k}b_8, h{k}b_8)
    u{k} = MatMul(lm{k}, wu{k}_8_12) ub{k} = Add(u{k}, bu{k}_12) e{k} = Gelu(ub{k}) w{k} = MatMul(e{k}, ww{k}_12_8)
    wb{k} = Add(w{k}, bw{k}_8) z{next} = Add(wb{k}, y{k})"""


def _block(k: int, mask: str = "m{k} = Identity(d{k})") -> str:
    return _BLOCK.replace("{mask}", mask).replace("{next}", str(k + 1)).replace("{k}", str(k))


PICTURE, TOKENS = "float[N,3,12,12] x", "int64[N,T] ids, int64[N,T] attention_mask"

NETWORKS = {
    "alexnet": """c1 = Conv<strides=[2,2], pads=[2,2,2,2]>(x, w1_4_3_5_5, b1_4) r1 = Relu(c1) n1 = LRN<size=3>(r1)
        p1 = MaxPool<kernel_shape=[3,3], strides=[2,2]>(n1) c2 = Conv<group=2, pads=[1,1,1,1]>(p1, w2_6_2_3_3, b2_6)
        r2 = Relu(c2) p2 = AveragePool<kernel_shape=[2,2], strides=[1,1], pads=[0,0,1,1]>(r2) f = Flatten(p2)
        d1 = Gemm<transB=1>(f, w3_8_24, b3_8) r3 = Relu(d1) k = Dropout(r3) y = Gemm(k, w4_8_5, b4_5)""",
    "vgg": """c1 = Conv<pads=[1,1,1,1]>(x, w1_4_3_3_3, b1_4) r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2_4_4_3_3, b2_4) r2 = Relu(c2)
        p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r2) c3 = Conv(p1, w3_6_4_3_3, b3_6) r3 = Relu(c3)
        p2 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r3) sh = Shape(p2) n = Gather(sh, zero)
        n1 = Unsqueeze(n, first) to = Concat<axis=0>(n1, minus) f = Reshape(p2, to) m = MatMul(f, w4_24_7)
        d = Add(m, b4_7) r4 = Relu(d) y = Gemm(r4, w5_7_5, b5_5)""",
    "resnet": """c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1_4_3_3_3, b1_4) r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2_4_4_3_3, b2_4) bn = BatchNormalization(c2, s2_4, o2_4, m2_4, v2_4)
        s = Add(bn, r1) r2 = Relu(s) c3 = Conv<strides=[2,2]>(r2, w3_6_4_1_1, b3_6)
        c4 = Conv<strides=[2,2], pads=[1,1,1,1]>(r2, w4_6_4_3_3, b4_6) t = Add(c4, c3) r3 = Relu(t)
        g = GlobalAveragePool(r3) f = Flatten(g) y = Gemm(f, w5_6_5, b5_5)""",
    "mobilenet": """c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1_4_3_3_3, b1_4) r1 = Clip(c1, none, six)
        c2 = Conv<group=4, pads=[1,1,1,1]>(r1, w2_4_1_3_3, b2_4) r2 = Clip(c2, none, six)
        c3 = Conv(r2, w3_4_4_1_1, b3_4) s = Add(r1, c3) c4 = Conv(s, w4_6_4_1_1, b4_6)
        r4 = HardSwish(c4) g = ReduceMean<keepdims=0>(r4, plane)
        y = Gemm(g, w5_6_5, b5_5)""",
    "efficientnet": """c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1_4_3_3_3, b1_4) s1 = Sigmoid(c1) r1 = Mul(c1, s1)
        c2 = Conv<group=4, pads=[1,1,1,1]>(r1, w2_4_1_3_3, b2_4) s2 = Sigmoid(c2) r2 = Mul(c2, s2)
        g1 = GlobalAveragePool(r2) c3 = Conv(g1, w3_2_4_1_1, b3_2) s3 = Sigmoid(c3) r3 = Mul(c3, s3)
        c4 = Conv(r3, w4_4_2_1_1, b4_4) s4 = Sigmoid(c4) r4 = Mul(s4, r2)
        c5 = Conv(r4, w5_4_4_1_1, b5_4) a = Add(c5, r1) g = GlobalAveragePool(a)
        f = Flatten(g) y = Gemm(f, w6_4_5, b6_5)""",
    "vit": """p = Conv<strides=[4,4]>(x, w1_8_3_4_4, b1_8) sh = Shape(p) n = Gather(sh, zero) n1 = Unsqueeze(n, first)
        to = Concat<axis=0>(n1, eight, minus) t = Reshape(p, to) tt = Transpose<perm=[0,2,1]>(t)
        many = Concat<axis=0>(n1, one, one) cls = Expand(token_1_1_8, many) zc = Concat<axis=1>(cls, tt)
        z0 = Add(zc, place_1_10_8) """
    + _block(0)
    + _block(1)
    + " top = Gather<axis=1>(z2, zero) y = Gemm(top, wy_8_5, by_5)",
    "tokens": """e = Gather(words_11_8, ids) sh = Shape(ids) t = Gather(sh, one0) places = Range(zero, t, one0)
        p = Gather(table_9_8, places) z0 = Add(e, p) mf = Cast<to=1>(attention_mask) mu = Unsqueeze(mf, middle)
        inv = Sub(unit, mu) far = Mul(inv, low) """
    + _block(0, "m{k} = Add(d{k}, far)")
    + """ n = Gather(sh, zero) n1 = Unsqueeze(n, first) state = Concat<axis=0>(one, n1, six1) h = ConstantOfShape(state)
        tn = Transpose<perm=[1,0,2]>(z1) yl, yh, yc = LSTM<hidden_size=6>(tn, wl_1_24_8, rl_1_24_6, bl_1_48, , h, h)
        last = Gather(yl, last0) q = Squeeze(last, outer) y = Gemm(q, wy_6_5, by_5)""",
    "assorted": """c1 = Conv<pads=[1,1,1,1]>(x, w1_4_3_3_3, b1_4) n1 = InstanceNormalization(c1, s1_4, o1_4)
        r1 = PRelu(n1, slope_4_1_1) pd = Pad<mode="reflect">(r1, edges) pe = Pad(pd, edges, unit)
        m = Where(mask, pe, r0_1_1) u = ConvTranspose<strides=[2,2]>(m, w2_4_4_2_2, b2_4)
        dn = Resize<mode="linear">(u, , scales) a, b = Split<axis=1>(dn, halves)
        back = Slice(a, right, ends, three, minus) j = Concat<axis=1>(back, b) k = Gather<axis=1>(j, order)
        d2s = DepthToSpace<blocksize=2>(k) ab = Softplus(d2s) ex = ReduceMax<keepdims=0>(ab, three)
        l2 = ReduceL2<keepdims=0>(ab, three) j2 = Concat<axis=2>(ex, l2) f = Flatten(j2) y = MatMul(f, wy_64_5)""",
}  # fmt: skip

_CONSTANTS = {
    "zero": np.array(0), "one0": np.array(1), "last0": np.array([-1]), "one": np.array([1]), "first": np.array([0]),
    "minus": np.array([-1]), "eight": np.array([8]), "six1": np.array([6]), "plane": np.array([2, 3]),
    "outer": np.array([0, 1]), "three": np.array([3]), "right": np.array([29]), "ends": np.array([-99]),
    "edges": np.array([0, 0, 1, 2, 0, 0, 1, 2]),
    "middle": np.array([1, 2]), "heads": np.array([0, 0, 2, 4]), "joined": np.array([0, 0, 8]),
    "halves": np.array([2, 2]),
    "order": np.array([2, 0, -1, 1]),
    "two": np.float32(2), "six": np.float32(6), "none": np.float32(0), "unit": np.float32(1), "low": np.float32(-30),
    "scales": np.array([1, 1, 0.5, 0.75], np.float32), "mask": np.arange(16 * 20).reshape(16, 20) % 7 > 0,
}  # fmt: skip


@lru_cache
def network(name: str) -> Graph:
    """One of `NETWORKS` with random weights: pictures (N, 3, 12, 12), or tokens and their mask (N, T), to (N, 5)."""
    text = NETWORKS[name]
    given = TOKENS if name == "tokens" else PICTURE
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> {name} ({given}) => (float[N,5] y) {{ {text} }}'
    )
    rng = np.random.default_rng(1)
    made = {output for node in proto.graph.node for output in node.output} | {i.name for i in proto.graph.input}
    for constant in dict.fromkeys(n for node in proto.graph.node for n in node.input if n and n not in made):
        if constant in _CONSTANTS:
            array = np.asarray(_CONSTANTS[constant])
        else:
            shape = [int(size) for size in re.findall(r"_(\d+)", constant)]
            values = rng.normal(size=shape) / max(1.0, np.sqrt(np.prod(shape[1:])))
            array = (np.abs(values) if constant.startswith("v2") else values).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, constant))
    return load(proto)


def inputs(name: str, n: int = 3) -> dict[str, np.ndarray]:
    """A batch of n for a network of that name."""
    rng = np.random.default_rng(2)
    if name != "tokens":
        return {"x": rng.normal(size=(n, 3, 12, 12)).astype("f")}
    return {
        "ids": rng.integers(0, 11, (n, 7)),
        "attention_mask": (np.arange(7) < np.array([[7], [5], [4]])[:n]).astype(np.int64),
    }
