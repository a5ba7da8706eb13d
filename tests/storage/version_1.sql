BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'tinyllm','first','2026-11-25 22:56:29.470372+00:00');
CREATE TABLE activations (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    node TEXT NOT NULL,
    message INTEGER,
    item INTEGER,
    path TEXT,
    depth INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    error,
    done_rev INTEGER,
    fired_rev INTEGER,
    fired_hash BLOB,
    fired_depth INTEGER
);
INSERT INTO "activations" VALUES(4294967297,X'5F5F5F5F5F5F5F740000000000000001','a',1,NULL,'0',1,'planned',0,NULL,1,0,NULL,NULL);
INSERT INTO "activations" VALUES(4294967298,X'5F5F5F5F5F5F5F740000000000000002','a',1,NULL,'0',1,'planned',0,NULL,2,0,NULL,NULL);
INSERT INTO "activations" VALUES(4294967299,X'5F5F5F5F5F5F5F740000000000000003','b',1,NULL,'0',1,'failed',1,'error',NULL,0,NULL,NULL);
INSERT INTO "activations" VALUES(4294967300,X'5F5F5F5F5F5F5F740000000000000004','c',2,NULL,'1',1,'planned',0,NULL,NULL,0,NULL,NULL);
INSERT INTO "activations" VALUES(4294967301,X'','join',NULL,NULL,NULL,0,'buffered',0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "activations" VALUES(4294967302,X'5F5F5F5F5F5F5F740000000000000006','c',3,NULL,'2',2,'planned',0,NULL,NULL,0,NULL,NULL);
INSERT INTO "activations" VALUES(8589934598,X'5F5F5F6368696C640000000000000006','a',1,NULL,'0',1,'planned',0,NULL,NULL,0,NULL,NULL);
INSERT INTO "activations" VALUES(8589934599,X'5F5F5F6368696C640000000000000007','b',1,NULL,'0',1,'planned',0,NULL,NULL,0,NULL,NULL);
INSERT INTO "activations" VALUES(8589934600,X'5F5F5F6368696C640000000000000008','c',2,NULL,'1',1,'planned',0,NULL,NULL,0,NULL,NULL);
INSERT INTO "activations" VALUES(8589934601,X'','join',NULL,NULL,NULL,0,'buffered',0,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE arrivals (
    id INTEGER PRIMARY KEY,
    activation INTEGER NOT NULL, -- a row id
    message INTEGER,
    hash BLOB NOT NULL,
    path TEXT,
    depth INTEGER NOT NULL
);
INSERT INTO "arrivals" VALUES(4294967297,4294967301,2,X'5F5F5F5F5F5F5F74FFFFFFFFFFFFFFFF','1',1);
INSERT INTO "arrivals" VALUES(4294967298,4294967301,3,X'5F5F5F5F5F5F5F74FFFFFFFFFFFFFFFE','2',2);
INSERT INTO "arrivals" VALUES(8589934594,8589934601,2,X'5F5F5F6368696C640000000000000001','1',1);
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    step INTEGER NOT NULL,
    status TEXT NOT NULL,
    node TEXT,
    message INTEGER NOT NULL,
    activation INTEGER NOT NULL,
    arrival INTEGER NOT NULL,
    variable INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    frontier INTEGER NOT NULL,
    arrivals INTEGER NOT NULL,
    variables INTEGER NOT NULL,
    created_at REAL NOT NULL,
    label TEXT,
    pins INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "checkpoints" VALUES(4294967296,1,0,'running',NULL,1,3,0,0,1,3,0,0,1.79564738948914074897e+09,NULL,0);
INSERT INTO "checkpoints" VALUES(4294967297,1,1,'running','a',2,5,1,2,2,4,1,2,1.79564738949316811565e+09,NULL,1);
INSERT INTO "checkpoints" VALUES(4294967298,1,2,'running','a',3,6,2,3,3,4,2,2,1.79564738949316811565e+09,NULL,0);
INSERT INTO "checkpoints" VALUES(4294967299,1,2,'failed',NULL,3,6,2,3,3,4,2,2,1.79564738949316811565e+09,NULL,0);
INSERT INTO "checkpoints" VALUES(8589934594,1,1,'running',NULL,2,9,2,2,2,4,1,2,1.79564738949850082397e+09,NULL,0);
CREATE TABLE graphs (
    digest BLOB NOT NULL UNIQUE,
    body NOT NULL,
    crc INTEGER NOT NULL
);
INSERT INTO "graphs" VALUES(X'2AFB9B83F9314E5D029766197F539792','{}',3021782021);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    history INTEGER,
    consumers INTEGER NOT NULL,
    pruned INTEGER NOT NULL DEFAULT 0,
    body NOT NULL,
    crc INTEGER NOT NULL
);
INSERT INTO "messages" VALUES(4294967297,'',1,3,0,'"task"',1069268306);
INSERT INTO "messages" VALUES(4294967298,'a',2,2,0,'"one"',42750161);
INSERT INTO "messages" VALUES(4294967299,'a',3,2,0,'"two"',1813786085);
CREATE TABLE owners (
    id TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    since REAL NOT NULL,
    beat INTEGER NOT NULL,
    renewed_at REAL NOT NULL
);
CREATE TABLE steps (
    id INTEGER PRIMARY KEY,
    activation INTEGER NOT NULL,
    node TEXT NOT NULL,
    ended_at REAL NOT NULL,
    duration_ms REAL NOT NULL,
    attempts INTEGER NOT NULL
);
INSERT INTO "steps" VALUES(4294967297,1,'a',1001.0,1.5,2);
INSERT INTO "steps" VALUES(4294967298,2,'a',1002.0,1.5,1);
CREATE TABLE traces (
    key INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: a late writer must not meet another trace
    trace_id TEXT UNIQUE,
    graph_id TEXT NOT NULL,
    graph_version TEXT NOT NULL,
    graph_path TEXT,
    graph BLOB NOT NULL,
    fingerprint TEXT NOT NULL,
    task_digest TEXT NOT NULL,
    status TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    owner TEXT,
    rev INTEGER NOT NULL,
    step INTEGER NOT NULL,
    parent INTEGER,
    parent_rev INTEGER,
    parent_step INTEGER,
    low_message INTEGER NOT NULL DEFAULT 0,
    low_activation INTEGER NOT NULL DEFAULT 0,
    low_arrival INTEGER NOT NULL DEFAULT 0,
    low_variable INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    error
);
INSERT INTO "traces" VALUES(1,'t','g','1.0.0','/graphs/g.yaml',X'2AFB9B83F9314E5D029766197F539792','f','digest','failed',1,NULL,3,2,NULL,NULL,NULL,0,0,0,0,1.79564738948914074897e+09,1.79564738949316811565e+09,'{"type":"E"}');
INSERT INTO "traces" VALUES(2,'child','g','1.0.0','/graphs/g.yaml',X'2AFB9B83F9314E5D029766197F539792','f','digest','running',1,NULL,2,1,1,1,1,2,5,1,2,1.79564738949850082397e+09,1.79564738949850082397e+09,NULL);
CREATE TABLE transactions (token INTEGER NOT NULL);
INSERT INTO "transactions" VALUES(4160881855400850089);
CREATE TABLE variables (
    id INTEGER PRIMARY KEY,
    trace INTEGER NOT NULL,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    base INTEGER NOT NULL,
    sort BLOB,
    body NOT NULL,
    crc INTEGER NOT NULL
);
INSERT INTO "variables" VALUES(4294967297,1,'list','full',1,NULL,'[]',3216969886);
INSERT INTO "variables" VALUES(4294967298,1,'x','full',2,NULL,'1',1319675913);
INSERT INTO "variables" VALUES(4294967299,1,'list','append',1,X'7B226174223A337D','1',3623255850);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX traces_owner ON traces (owner) WHERE owner IS NOT NULL;
CREATE INDEX traces_graph ON traces (graph);
CREATE INDEX activations_live ON activations (id) WHERE done_rev IS NULL;
CREATE INDEX arrivals_of ON arrivals (activation);
CREATE INDEX variables_of ON variables (trace, key);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('traces',2);
COMMIT;
