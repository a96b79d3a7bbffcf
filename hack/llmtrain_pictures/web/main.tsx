// Draws one dashboard: index.html?dashboard=NAME&span=SECONDS[&end=TIME][&width=PIXELS].
import { DataFrame, ThemeContext, createTheme, dateTime } from '@grafana/data';
import { GlobalStyles, PanelChrome, PortalContainer } from '@grafana/ui';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { framesOf } from './frames';
import { PanelBody } from './panels';
import { Range, Variables, problems } from './prometheus';

const theme = createTheme({ colors: { mode: 'dark' } });
const query = new URLSearchParams(location.search);
const span = Number(query.get('span') ?? 900);
const to = Number(query.get('end') ?? Math.floor(Date.now() / 1000));
const range: Range = { from: to - span, to, step: Math.max(1, Math.round(span / 400)) };
const width = Number(query.get('width') ?? 1600);
const [from, until] = [dateTime(1000 * range.from), dateTime(1000 * range.to)];
const timeRange = { from, to: until, raw: { from, to: until } };
const [CELL_HEIGHT, GAP, TITLE_HEIGHT, DRAWING_MS] = [38, 8, 48, 1500];

interface Drawn {
  dashboard: any;
  panels: Array<{ panel: any; frames: DataFrame[] }>;
  variables: Record<string, string>;
}

async function load(): Promise<Drawn> {
  const dashboard = await (await fetch(`/dashboards/${query.get('dashboard')}.json`)).json();
  const variables = new Variables(range);
  for (const variable of dashboard.templating?.list ?? []) {
    await variables.load(variable);
  }
  const drawn = dashboard.panels.filter((panel: any) => panel.type !== 'row');
  const panels = await Promise.all(
    drawn.map(async (panel: any) => {
      try {
        return { panel, frames: await framesOf(panel, variables, range, theme) };
      } catch (error) {
        problems.push(`${panel.title}: ${error}`);
        return { panel, frames: [] };
      }
    })
  );
  return { dashboard, panels, variables: variables.values };
}

function Dashboard() {
  const [drawn, setDrawn] = useState<Drawn>();
  useEffect(() => {
    load()
      .then(setDrawn)
      .catch((error) => problems.push(String(error)))
      .finally(() => setTimeout(() => Object.assign(window, { problems }), DRAWING_MS));
  }, []);
  if (!drawn) {
    return <div>loading</div>;
  }
  const { dashboard, panels, variables } = drawn;
  const bottom = Math.max(...dashboard.panels.map(({ gridPos }: any) => gridPos.y + gridPos.h));
  const shown = Object.entries(variables).filter(([name]) => !name.startsWith('__') && name !== 'datasource');
  return (
    <div style={{ background: theme.colors.background.canvas, height: TITLE_HEIGHT + bottom * CELL_HEIGHT, position: 'relative', width }}>
      <h3 style={{ margin: 0, padding: GAP }}>
        {dashboard.title} <small>{shown.map(([name, value]) => `${name}: ${value.split('|').join(', ')}`).join('   ')}</small>
      </h3>
      {dashboard.panels.filter((panel: any) => panel.type === 'row').map((row: any) => (
        <div key={row.title} style={{ fontWeight: 500, left: GAP, position: 'absolute', top: TITLE_HEIGHT + GAP + row.gridPos.y * CELL_HEIGHT }}>
          {row.title}
        </div>
      ))}
      {panels.map((each) => <Placed key={each.panel.id} {...each} />)}
    </div>
  );
}

function Placed({ panel, frames }: { panel: any; frames: DataFrame[] }) {
  const { x, y, w, h } = panel.gridPos;
  const size = { height: h * CELL_HEIGHT - GAP, width: (w * width) / 24 - GAP };
  const place = { left: (x * width) / 24 + GAP / 2, position: 'absolute' as const, top: TITLE_HEIGHT + y * CELL_HEIGHT };
  return (
    <div style={{ ...place, ...size }}>
      <PanelChrome title={panel.title} description={panel.description} {...size}>
        {(innerWidth: number, innerHeight: number) => (
          <PanelBody panel={panel} frames={frames} width={innerWidth} height={innerHeight} timeRange={timeRange} theme={theme} />
        )}
      </PanelChrome>
    </div>
  );
}

createRoot(document.getElementById('root')!).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <Dashboard />
    <PortalContainer />
  </ThemeContext.Provider>
);
