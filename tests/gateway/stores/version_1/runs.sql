BEGIN TRANSACTION;
CREATE TABLE events(
      run INTEGER NOT NULL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL,
      bytes INTEGER NOT NULL, data BLOB NOT NULL
    );
INSERT INTO "events" VALUES(1,0,4,64,X'4B492C49B452A856CA53B25230A8E5E24A41E21BA2F18DD0F8C6403E00');
INSERT INTO "events" VALUES(2,0,2,32,X'4B492C49B452A856CA53B25230A8E5E24A41E21B02F900');
CREATE TABLE runs(
      number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
      token TEXT NOT NULL, path TEXT NOT NULL, model TEXT NOT NULL, upstream_model TEXT NOT NULL,
      upstreams TEXT NOT NULL, state TEXT NOT NULL, reason TEXT, code TEXT, created REAL NOT NULL,
      ended REAL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, response_id TEXT,
      upstream_response_id TEXT, streamed INTEGER NOT NULL, background INTEGER NOT NULL,
      stored INTEGER NOT NULL
    );
INSERT INTO "runs" VALUES(1,'run_kept','0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f','laptop','/chat/completions','small','small-q4','box
spare','completed',NULL,NULL,4000000000.0,4000000002.5,0,4,NULL,NULL,1,0,1);
INSERT INTO "runs" VALUES(2,'run_on','0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f','laptop','/chat/completions','small','small-q4','box
spare','streaming',NULL,NULL,4000000000.0,NULL,0,2,NULL,NULL,1,0,1);
CREATE TABLE under_way(
      run INTEGER PRIMARY KEY, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL,
      written REAL NOT NULL, writer TEXT NOT NULL
    );
INSERT INTO "under_way" VALUES(2,0,2,1.79600145652897906305e+09,'0123456789abcdef/1/1');
CREATE INDEX runs_by_owner ON runs(owner, number);
CREATE INDEX runs_by_response ON runs(response_id) WHERE response_id IS NOT NULL;
CREATE INDEX events_by_run ON events(run, first_seq)
    ;
COMMIT;
PRAGMA user_version=1;
