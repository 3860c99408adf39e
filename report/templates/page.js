// Light and dark; what lies at the pointer: values of curves, images of the map, larger pictures.
document.getElementById("theme").onclick=()=>{const r=document.documentElement,
d=r.dataset.theme?r.dataset.theme==="dark":matchMedia("(prefers-color-scheme: dark)").matches;
r.dataset.theme=d?"light":"dark"};
const tip=document.createElement("div");tip.id="tip";document.body.append(tip);
const element=(tag,text,colour)=>{const e=document.createElement(tag);e.textContent=text;
if(colour)e.style.color=`var(--${colour})`;return e};
function show(event,...children){tip.replaceChildren(...children);tip.style.display="block";
const {width,height}=tip.getBoundingClientRect(),gap=14,
x=event.clientX+gap+width<innerWidth?event.clientX+gap:Math.max(4,event.clientX-gap-width);
tip.style.left=`${x}px`;tip.style.top=`${Math.max(4,Math.min(event.clientY+gap,innerHeight-height-4))}px`}
function hide(){tip.style.display="none";for(const rule of document.querySelectorAll(".rule"))rule.remove()}
const nearest=(points,distance)=>points.reduce((best,p)=>distance(p)<distance(best)?p:best);
for(const svg of document.querySelectorAll("svg[data-hover]")){
const hover=JSON.parse(svg.dataset.hover),box=svg.viewBox.baseVal;
const place=e=>{const r=svg.getBoundingClientRect();
return [(e.clientX-r.left)/r.width*box.width,(e.clientY-r.top)/r.height*box.height]};
svg.addEventListener("pointerleave",hide);
if(hover.lines)svg.addEventListener("pointermove",e=>{hide();const [x]=place(e),
at=nearest(hover.lines.flatMap(l=>l.points),p=>Math.abs(p[0]-x)),
rule=document.createElementNS(svg.namespaceURI,"path");
rule.setAttribute("class","rule");rule.setAttribute("d",`M${at[0]} ${hover.top}V${hover.bottom}`);svg.append(rule);
const rows=hover.lines.flatMap(l=>l.points.filter(p=>p[2]===at[2]).map(p=>element("div",`${p[3]}  ${l.label}`,l.colour)));
show(e,element("b",`${hover.x} ${at[2]}`),...rows)});
if(hover.images)svg.addEventListener("pointermove",e=>{hide();const [x,y]=place(e),
far=p=>Math.hypot(p[0]-x,p[1]-y),at=nearest(hover.images,far);
if(far(at)<10)show(e,element("b",at[2]))})}
for(const image of document.querySelectorAll("figure img")){
image.addEventListener("pointermove",e=>{const large=new Image();large.src=image.src;show(e,large,element("div",image.alt))});
image.addEventListener("pointerleave",hide)}
addEventListener("scroll",hide,{passive:true});
for(const link of document.querySelectorAll("details.menu a"))link.onclick=()=>{link.parentElement.open=false};
