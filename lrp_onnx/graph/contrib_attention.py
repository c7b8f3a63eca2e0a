"""What ONNX Runtime's fused attention operators (domain com.microsoft) are made of, in operators of the standard.

In the comments: N batch, S queries, T keys, P keys of the past, H size of a head.
"""

from __future__ import annotations

from lrp_onnx.graph.contrib import Call, Lines, contrib, number

_FILTER = -10000.0  # added to the score of a key that is masked, unless the node says what


def _heads(x: str, y: str, heads: int) -> Lines:
    """(N, S, heads · H) -> (N, heads, S, H)"""
    shape = f"{y}Shape = Constant<value_ints = [0, 0, {heads}, -1]>()"
    return [shape, f"{y}Split = Reshape({x}, {y}Shape)", f"{y} = Transpose<perm = [0, 2, 1, 3]>({y}Split)"]


def _attend(n: Call, biases: list[str], causal: bool) -> Lines:
    """Y (N, S, heads · H) of Q, K, V (N, heads, S or T, H), with `biases` added to the scores (N, heads, S, T).

    `causal` needs PastCount, how many keys there were before the first query.
    """
    lines = ["KT = Transpose<perm = [0, 1, 3, 2]>(K)", "Raw = MatMul(Q, KT)"]
    if scale := n.real("scale", 0.0):
        lines += [f"Scale = Constant<value_float = {number(scale)}>()", "ScaleLike = CastLike(Scale, Raw)"]
        lines += ["Score0 = Mul(Raw, ScaleLike)"]
    else:
        lines += ["Size = Shape<start = -1>(Q)", "SizeLike = CastLike(Size, Raw)", "Root = Sqrt(SizeLike)"]
        lines += ["Score0 = Div(Raw, Root)"]
    if cap := n.real("softcap", 0.0):
        lines += [f"Cap = Constant<value_float = {number(cap)}>()", "CapLike = CastLike(Cap, Raw)"]
        lines += ["Within = Div(Score0, CapLike)", "Bent = Tanh(Within)", "Capped = Mul(Bent, CapLike)"]
    score = "Capped" if cap else "Score0"
    if causal:
        lines += [*_CAUSAL, *_filtered(n, "Allowed", "Causal")]
        biases = [*biases, "Causal"]
    for k, bias in enumerate(biases, 1):
        lines += [f"Score{k} = Add({score}, {bias})"]
        score = f"Score{k}"
    lines += [f"Weight = Softmax<axis = -1>({score})", "Mixed = MatMul(Weight, V)"]
    lines += ["Turned = Transpose<perm = [0, 2, 1, 3]>(Mixed)", "Flat = Constant<value_ints = [0, 0, -1]>()"]
    return [*lines, "Y = Reshape(Turned, Flat)"]


_COUNTS = [
    "Zero = Constant<value_int = 0>()",
    "One = Constant<value_int = 1>()",
    "AxisZero = Constant<value_ints = [0]>()",
    "Queries1 = Shape<start = 2, end = 3>(Q)",
    "Queries = Squeeze(Queries1, AxisZero)",
    "Keys1 = Shape<start = 2, end = 3>(K)",
    "Keys = Squeeze(Keys1, AxisZero)",
]


# Allowed (S, T), or (N, 1, S, T) where PastCount is (N, 1, 1, 1): a key at or before the query's own position
_CAUSAL = [
    "Column = Range(Zero, Keys, One)",
    "Row0 = Range(Zero, Queries, One)",
    "LastAxis = Constant<value_ints = [1]>()",
    "Row1 = Unsqueeze(Row0, LastAxis)",
    "Row = Add(Row1, PastCount)",
    "Allowed = LessOrEqual(Column, Row)",
]


def _filtered(n: Call, keep: str, bias: str) -> Lines:
    """0 where `keep`, and the filter value elsewhere."""
    value = number(n.real("mask_filter_value", _FILTER))
    return [
        f"{bias}Off0 = Constant<value_float = {value}>()",
        f"{bias}On0 = Constant<value_float = 0.0>()",
        f"{bias}Off = CastLike({bias}Off0, Q)",
        f"{bias}On = CastLike({bias}On0, Q)",
        f"{bias} = Where({keep}, {bias}On, {bias}Off)",
    ]


def _masked(n: Call, name: str) -> Lines | None:
    """KeyBias from a mask: (N, T) with 1 for a key that counts, (N, S, T), or (N,) how many keys count."""
    rank = n.rank(name)
    if rank == 1:
        lines = ["MaskAxes = Constant<value_ints = [1, 2, 3]>()", f"Counts0 = Cast<to = 7>({name})"]
        lines += [
            "Counts = Unsqueeze(Counts0, MaskAxes)",
            "Place = Range(Zero, Keys, One)",
            "Keep = Less(Place, Counts)",
        ]
    elif rank in (2, 3):
        axes = "[1, 2]" if rank == 2 else "[1]"
        lines = [f"MaskAxes = Constant<value_ints = {axes}>()", f"Mask4 = Unsqueeze({name}, MaskAxes)"]
        lines += ["Keep = Cast<to = 9>(Mask4)"]
    else:
        return None
    return [*lines, *_filtered(n, "Keep", "KeyBias")]


def _joined(past_key: str, past_value: str) -> Lines:
    """K and V behind those of the past."""
    return [f"K = Concat<axis = 2>({past_key}, NewK)", f"V = Concat<axis = 2>({past_value}, NewV)"]


_NO_PAST = ["K = Identity(NewK)", "V = Identity(NewV)"]


@contrib("Attention", "X W B Mask Past Bias PastLength", "Y Present")
def _attention(n: Call) -> Lines | None:
    heads, sizes, width = n.integer("num_heads"), list(n.integers("qkv_hidden_sizes")), n.size("W", 1)
    if n.integer("do_rotary") or n.integer("past_present_share_buffer") or n.has("PastLength"):
        return None
    if not sizes:
        if width is None:
            return None
        sizes = [width // 3] * 3
    lines = ["Projected = MatMul(X, W)", "All = Add(Projected, B)" if n.has("B") else "All = Identity(Projected)"]
    lines += [f"Sizes = Constant<value_ints = {sizes}>()", "Qs, Ks, Vs = Split<axis = -1>(All, Sizes)"]
    lines += [*_heads("Qs", "Q", heads), *_heads("Ks", "NewK", heads), *_heads("Vs", "NewV", heads)]
    if n.has("Past"):  # (2, N, heads, P, H)
        lines += ["First = Constant<value_int = 0>()", "Second = Constant<value_int = 1>()"]
        lines += ["PastK = Gather(Past, First)", "PastV = Gather(Past, Second)", *_joined("PastK", "PastV")]
    else:
        lines += _NO_PAST
    lines += _COUNTS
    if n.wants(1):
        lines += ["K5 = Unsqueeze(K, AxisZero)", "V5 = Unsqueeze(V, AxisZero)", "Present = Concat<axis = 0>(K5, V5)"]
    return _attend_where_unmasked(n, lines)


@contrib("MultiHeadAttention", "Query Key Value B Mask Bias PastKey PastValue", "Y PresentKey PresentValue")
def _multi_head(n: Call) -> Lines | None:
    heads = n.integer("num_heads")
    split = _projections(n, heads)
    if split is None or n.has("PastKey") != n.has("PastValue"):
        return None
    lines = [*split, *(_joined("PastKey", "PastValue") if n.has("PastKey") else _NO_PAST), *_COUNTS]
    if n.wants(1) or n.wants(2):
        lines += ["PresentKey = Identity(K)", "PresentValue = Identity(V)"]
    return _attend_where_unmasked(n, lines)


def _attend_where_unmasked(n: Call, lines: Lines) -> Lines | None:
    """`lines` and the attention behind them, with the mask over keys, the bias and the order that the node asks for."""
    biases = ["Bias"] if n.has("Bias") else []
    if n.has("Mask"):
        masked = _masked(n, "Mask")
        if masked is None:
            return None
        lines, biases = lines + masked, ["KeyBias", *biases]
    causal = bool(n.integer("unidirectional"))
    lines += ["PastCount = Sub(Keys, Queries)"] if causal else []
    return lines + _attend(n, biases, causal)


def _projections(n: Call, heads: int) -> Lines | None:
    """Q, NewK, NewV (N, heads, S, H) from three tensors (N, S, heads · H), or packed: (N, S, heads, 3 or 2, H)."""
    parts: list[tuple[str, int, tuple[str, ...]]] = []
    if n.rank("Query") == 5 and not n.has("Key"):
        parts = [("Query", 3, ("Q", "NewK", "NewV"))]
    elif n.rank("Query") == 3 and n.has("Key") and n.rank("Key") == 5:
        parts = [("Key", 2, ("NewK", "NewV"))]
    elif not n.has("Value") or n.rank("Query") != 3:
        return None
    if parts and n.has("B"):
        return None
    lines: Lines = []
    for packed, count, names in parts:
        raw = [f"{name}5" for name in names]
        lines += [f"{', '.join(raw)} = Split<axis = 3, num_outputs = {count}>({packed})"]
        lines += [f"{packed}Axis = Constant<value_ints = [3]>()"]
        for name, tensor in zip(names, raw, strict=True):
            lines += [f"{name}4 = Squeeze({tensor}, {packed}Axis)", f"{name} = Transpose<perm = [0, 2, 1, 3]>({name}4)"]
    done = {name for _, _, names in parts for name in names}
    given = {"Q": "Query", "NewK": "Key", "NewV": "Value"}
    if n.has("B"):  # of queries, keys and values, one behind the other; the first two have the same size
        width = n.size("Query", 2)
        total = n.size("B", 0)
        if width is None or total is None:
            return None
        lines += [f"Sizes = Constant<value_ints = [{width}, {width}, {total - 2 * width}]>()"]
        lines += ["QB, NewKB, NewVB = Split<axis = 0>(B, Sizes)"]
    for name, tensor in given.items():
        if name in done:
            continue
        if n.has("B") and n.rank(tensor) == 3:
            lines += [f"{name}Biased = Add({tensor}, {name}B)"]
            tensor = f"{name}Biased"
        elif n.rank(tensor) == 4:  # has its heads already
            lines += [f"{name} = Identity({tensor})"]
            continue
        lines += _heads(tensor, name, heads)
    return lines


# ---- rotary embeddings, and attention whose queries share keys


def _rotated(n: Call, x: str, y: str, positions: str, heads: int) -> Lines:
    """y (N, heads, S, H): x (N, S, heads · H) or (N, heads, S, H), rotated by what the caches hold at `positions`."""
    rank, part = n.rank(x) if n.has(x) else 3, n.integer("rotary_embedding_dim")
    lines = _heads(x, f"{y}In", heads) if rank == 3 else [f"{y}In = Identity({x})"]
    whole = f"{y}In"
    if part:
        lines += [f"{y}Part = Constant<value_ints = [{part}]>()", f"{y}Size = Shape<start = -1>({y}In)"]
        lines += [f"{y}Left = Sub({y}Size, {y}Part)", f"{y}Sizes = Concat<axis = 0>({y}Part, {y}Left)"]
        lines += [f"{y}Turn, {y}Rest = Split<axis = -1>({y}In, {y}Sizes)"]
        whole = f"{y}Turn"
    lines += [f"{y}Head = Constant<value_ints = [1]>()"]
    for table in ("Cos", "Sin"):
        lines += [f"{y}{table}3 = Gather({table}, {positions})", f"{y}{table} = Unsqueeze({y}{table}3, {y}Head)"]
    if n.integer("interleaved") or n.integer("rotary_interleaved"):
        lines += [f"{y}Pairs = Constant<value_ints = [0, 0, 0, -1, 2]>()", f"{y}In5 = Reshape({whole}, {y}Pairs)"]
        lines += [
            f"{y}Last = Constant<value_ints = [-1]>()",
            f"{y}A5, {y}B5 = Split<axis = -1, num_outputs = 2>({y}In5)",
        ]
        lines += [f"{y}A = Squeeze({y}A5, {y}Last)", f"{y}B = Squeeze({y}B5, {y}Last)"]
    else:
        lines += [f"{y}A, {y}B = Split<axis = -1, num_outputs = 2>({whole})"]
    lines += [f"{y}AC = Mul({y}A, {y}Cos)", f"{y}BS = Mul({y}B, {y}Sin)", f"{y}Real = Sub({y}AC, {y}BS)"]
    lines += [f"{y}AS = Mul({y}A, {y}Sin)", f"{y}BC = Mul({y}B, {y}Cos)", f"{y}Imaginary = Add({y}AS, {y}BC)"]
    turned = f"{y}Turned" if part else y
    if n.integer("interleaved") or n.integer("rotary_interleaved"):
        lines += [f"{y}Real5 = Unsqueeze({y}Real, {y}Last)", f"{y}Imaginary5 = Unsqueeze({y}Imaginary, {y}Last)"]
        lines += [f"{y}Out5 = Concat<axis = -1>({y}Real5, {y}Imaginary5)"]
        lines += [f"{y}Flat = Constant<value_ints = [0, 0, 0, -1]>()", f"{turned} = Reshape({y}Out5, {y}Flat)"]
    else:
        lines += [f"{turned} = Concat<axis = -1>({y}Real, {y}Imaginary)"]
    return [*lines, f"{y} = Concat<axis = -1>({turned}, {y}Rest)"] if part else lines


@contrib("RotaryEmbedding", "X Positions Cos Sin")
def _rotary(n: Call) -> Lines | None:
    rank, size = n.rank("X"), n.size("Cos", 1)
    heads = n.integer("num_heads")
    if n.integer("is_packed_batching") or n.real("scale", 1.0) != 1.0 or rank not in (3, 4):
        return None
    if rank == 3 and not heads:
        width = n.size("X", 2)
        if width is None or size is None:
            return None
        heads = width // (2 * size)
    lines = ["Place = Identity(Positions)"]
    if n.rank("Positions") == 1:  # the first position: the others follow
        axis = 1 if rank == 3 else 2
        lines = [
            "Zero = Constant<value_int = 0>()",
            "One = Constant<value_int = 1>()",
            "At = Constant<value_ints = [0]>()",
        ]
        lines += [f"Length1 = Shape<start = {axis}, end = {axis + 1}>(X)", "Length = Squeeze(Length1, At)"]
        lines += ["Steps = Range(Zero, Length, One)", "Steps2 = Unsqueeze(Steps, At)", "Place = Add(Steps2, Positions)"]
    lines += _rotated(n, "X", "Out", "Place", heads)
    if rank == 4:
        return [*lines, "Y = Identity(Out)"]
    return [
        *lines,
        "Back = Transpose<perm = [0, 2, 1, 3]>(Out)",
        "Joined = Constant<value_ints = [0, 0, -1]>()",
        "Y = Reshape(Back, Joined)",
    ]


@contrib(
    "GroupQueryAttention",
    "Query Key Value PastKey PastValue Lengths Total Cos Sin Positions Bias",
    "Y PresentKey PresentValue",
)
def _group_query(n: Call) -> Lines | None:
    heads, shared = n.integer("num_heads"), n.integer("kv_num_heads")
    unknown = n.integer("smooth_softmax") or n.integer("local_window_size", -1) != -1 or n.has("Positions")
    if unknown or not n.has("Key") or n.rank("Query") != 3 or heads % shared:
        return None
    lines = ["At = Constant<value_ints = [0]>()", "Zero = Constant<value_int = 0>()", "One = Constant<value_int = 1>()"]
    # Lengths is how many keys each sequence has, less one; its own queries are the last of them
    lines += ["Queries1 = Shape<start = 1, end = 2>(Query)", "Queries = Squeeze(Queries1, At)"]
    lines += ["Last = Cast<to = 7>(Lengths)", "Keys0 = Add(Last, One)", "Past0 = Sub(Keys0, Queries)"]
    if n.integer("do_rotary"):
        lines += ["Second = Constant<value_ints = [1]>()", "Past2 = Unsqueeze(Past0, Second)"]
        lines += ["Steps = Range(Zero, Queries, One)", "Place = Add(Past2, Steps)"]
        lines += [*_rotated(n, "Query", "Q", "Place", heads), *_rotated(n, "Key", "NewK", "Place", shared)]
    else:
        lines += [*_heads("Query", "Q", heads), *_heads("Key", "NewK", shared)]
    lines += _heads("Value", "NewV", shared)
    past = n.has("PastKey") and n.size("PastKey", 2) != 0
    lines += _joined_shared() if past else ["Ks = Identity(NewK)", "Vs = Identity(NewV)"]
    if n.wants(1) or n.wants(2):
        lines += ["PresentKey = Identity(Ks)", "PresentValue = Identity(Vs)"]
    for name in "KV":  # each head as often as queries share it
        lines += [f"{name}Axis = Constant<value_ints = [2]>()", f"{name}5 = Unsqueeze({name}s, {name}Axis)"]
        lines += [f"{name}Times = Constant<value_ints = [1, 1, {heads // shared}, 1, 1]>()"]
        lines += [f"{name}Many = Tile({name}5, {name}Times)", f"{name}Size = Shape<start = 2>({name}s)"]
        lines += [f"{name}Front = Constant<value_ints = [0, {heads}]>()"]
        lines += [
            f"{name}Whole = Concat<axis = 0>({name}Front, {name}Size)",
            f"{name} = Reshape({name}Many, {name}Whole)",
        ]
    lines += ["Keys1 = Shape<start = 2, end = 3>(K)", "Keys = Squeeze(Keys1, At)"]
    lines += ["PastAxes = Constant<value_ints = [1, 2, 3]>()", "PastCount = Unsqueeze(Past0, PastAxes)"]
    return lines + _attend(n, ["Bias"] if n.has("Bias") else [], True)


def _joined_shared() -> Lines:
    return ["Ks = Concat<axis = 2>(PastKey, NewK)", "Vs = Concat<axis = 2>(PastValue, NewV)"]
